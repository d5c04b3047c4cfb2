"""The columns of the hub's data sets with their types, as their cards give them, and rows of that form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Translation, Value

from himalaya_adapter.streams.task import HubSource

ROWS = 90
TEXT, NUMBER, TEXTS = Value("string"), Value("int32"), List(Value("string"))
YES_NO = ClassLabel(names=["False", "True"])
NLI = ClassLabel(names=["entailment", "neutral", "contradiction"])
STARS = ClassLabel(names=["1 star", "2 star", "3 stars", "4 stars", "5 stars"])
ANSWERS = {"text": TEXTS, "answer_start": List(NUMBER)}
PAIR = {"sentence1": TEXT, "sentence2": TEXT}
TRANSLATIONS = {pair: Translation(languages=pair.split("-")) for pair in ("de-en", "en-fr", "en-fi")}
TRACE = {"prompt": TEXT, "answer": TEXT}
ENTITIES = [
    *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building"),
    *("NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"),
]
TNEWS = ["100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113", "114", "115", "116"]
YAHOO = [
    *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet"),
    *("Sports", "Business & Finance", "Entertainment & Music", "Family & Relationships", "Politics & Government"),
]
YNAT = ["IT과학", "경제", "사회", "생활문화", "세계", "스포츠", "정치"]
SWAHILI = ["uchumi", "kitaifa", "michezo", "kimataifa", "burudani", "afya"]

# Data set and configuration -> columns; the pictures of ScienceQA are left out, as no task reads them.
SCHEMAS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("wmt/wmt14", "de-en"): {"translation": TRANSLATIONS["de-en"]},
    ("nyu-mll/glue", "rte"): {
        **PAIR,
        "label": ClassLabel(names=["entailment", "not_entailment"]),
        "idx": NUMBER,
    },
    ("nyu-mll/glue", "mnli"): {"premise": TEXT, "hypothesis": TEXT, "label": NLI, "idx": NUMBER},
    ("nyu-mll/glue", "qqp"): {
        **{"question1": TEXT, "question2": TEXT, "idx": NUMBER},
        "label": ClassLabel(names=["not_duplicate", "duplicate"]),
    },
    ("nyu-mll/glue", "sst2"): {
        **{"sentence": TEXT, "idx": NUMBER},
        "label": ClassLabel(names=["negative", "positive"]),
    },
    ("aps/super_glue", "cb"): {
        **{"premise": TEXT, "hypothesis": TEXT, "idx": NUMBER},
        "label": ClassLabel(names=["entailment", "contradiction", "neutral"]),
    },
    ("aps/super_glue", "wic"): {
        **{"word": TEXT, **PAIR, "idx": NUMBER, "label": YES_NO},
        **dict.fromkeys(("start1", "start2", "end1", "end2"), NUMBER),
    },
    ("aps/super_glue", "copa"): {
        **{"premise": TEXT, "choice1": TEXT, "choice2": TEXT, "question": TEXT, "idx": NUMBER},
        "label": ClassLabel(names=["choice1", "choice2"]),
    },
    ("aps/super_glue", "multirc"): {
        **{"paragraph": TEXT, "question": TEXT, "answer": TEXT, "label": YES_NO},
        "idx": dict.fromkeys(("paragraph", "question", "answer"), NUMBER),
    },
    ("abisee/cnn_dailymail", "3.0.0"): {"article": TEXT, "highlights": TEXT, "id": TEXT},
    ("google-research-datasets/tydiqa", "secondary_task"): {
        **{"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT},
        "answers": ANSWERS,
    },
    ("sahil2801/CodeAlpaca-20k", None): {"output": TEXT, "instruction": TEXT, "input": TEXT},
    ("google/boolq", None): {"question": TEXT, "answer": Value("bool"), "passage": TEXT},
    ("google-research-datasets/paws-x", "es"): {"id": NUMBER, **PAIR, "label": ClassLabel(names=["0", "1"])},
    ("google-research-datasets/paws-x", "de"): {"id": NUMBER, **PAIR, "label": ClassLabel(names=["0", "1"])},
    ("fancyzhx/ag_news", None): {"text": TEXT, "label": ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])},
    ("Helsinki-NLP/opus-100", "en-fr"): {"translation": TRANSLATIONS["en-fr"]},
    ("Helsinki-NLP/opus-100", "en-fi"): {"translation": TRANSLATIONS["en-fi"]},
    ("fancyzhx/dbpedia_14", None): {"label": ClassLabel(names=ENTITIES), "title": TEXT, "content": TEXT},
    ("rajpurkar/squad", None): {
        **{"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT},
        "answers": ANSWERS,
    },
    ("klue/klue", "ynat"): {
        **{"guid": TEXT, "title": TEXT, "url": TEXT, "date": TEXT},
        "label": ClassLabel(names=YNAT),
    },
    ("EdinburghNLP/xsum", None): {"document": TEXT, "summary": TEXT, "id": TEXT},
    ("google-research-datasets/mbpp", "full"): {
        **{"task_id": NUMBER, "text": TEXT, "code": TEXT, "test_setup_code": TEXT},
        **{"test_list": TEXTS, "challenge_test_list": TEXTS},
    },
    ("clue/clue", "tnews"): {"sentence": TEXT, "label": ClassLabel(names=TNEWS), "idx": NUMBER},
    ("tau/commonsense_qa", None): {
        **{"id": TEXT, "question": TEXT, "question_concept": TEXT, "answerKey": TEXT},
        "choices": {"label": TEXTS, "text": TEXTS},
    },
    ("Yelp/yelp_review_full", None): {"label": STARS, "text": TEXT},
    ("google/code_x_glue_ct_code_to_text", "python"): {
        **dict.fromkeys(("repo", "path", "func_name", "original_string", "language", "code", "docstring"), TEXT),
        **{"id": NUMBER, "sha": TEXT, "url": TEXT, "code_tokens": TEXTS, "docstring_tokens": TEXTS},
    },
    ("community-datasets/swahili_news", "swahili_news"): {"text": TEXT, "label": ClassLabel(names=SWAHILI)},
    ("stanfordnlp/imdb", None): {"text": TEXT, "label": ClassLabel(names=["neg", "pos"])},
    ("mteb/AmazonReviewsClassification", "en"): {"text": TEXT, "label": Value("int64")},
    ("community-datasets/yahoo_answers_topics", None): {
        **{"id": NUMBER, "question_title": TEXT, "question_content": TEXT, "best_answer": TEXT},
        "topic": ClassLabel(names=YAHOO),
    },
    ("HHazard/trace-train-5000", None): TRACE,
    ("derek-thomas/ScienceQA", None): {
        **dict.fromkeys(("question", "hint", "task", "grade", "subject", "topic", "category", "skill"), TEXT),
        **{"lecture": TEXT, "solution": TEXT, "choices": TEXTS, "answer": Value("int8")},
    },
    **{
        ("facebook/xnli", language): {"premise": TEXT, "hypothesis": TEXT, "label": NLI}
        for language in ("fr", "ru", "ar")
    },
}
# What stands in columns whose text a task depends on, by data set, column and number of the row.
TEXTS_OF = {
    ("google-research-datasets/tydiqa", "id"): ["swahili-{}-0", "finnish-{}-0", "english-{}-0"],
    ("tau/commonsense_qa", "answerKey"): list("ABCDE"),
    ("HHazard/trace-train-5000", "answer"): list("ABC"),
    ("derek-thomas/ScienceQA", "subject"): ["language science", "language science", "natural science"],
    ("aps/super_glue", "question"): ["cause", "effect"],
}


def value(kind: Any, name: str, number: int) -> Any:
    """A value of a feature's type; texts differ in every row."""
    if isinstance(kind, ClassLabel):
        return number % kind.num_classes
    if isinstance(kind, Translation):
        return {language: f"{name} {number} {language}" for language in kind.languages}
    if isinstance(kind, Mapping):
        return {part: value(one, f"{name} {part}", number) for part, one in kind.items()}
    if isinstance(kind, List):
        return [value(kind.feature, f"{name} {place}", number) for place in range(3)]
    if kind.dtype == "bool":
        return number % 2 == 0
    return f"{name} {number}" if kind.dtype == "string" else number % 3


def write_split(path: Path, source: HubSource, split: str, rows: int = ROWS) -> None:
    """A split as the hub gives it: the columns, types and metadata of its schema."""
    columns: dict[str, list[Any]] = {}
    for name, kind in SCHEMAS[source.id, source.config].items():
        texts = TEXTS_OF.get((source.id, name))
        columns[name] = [
            texts[number % len(texts)].format(number) if texts else value(kind, f"{split} {name}", number)
            for number in range(rows)
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features(SCHEMAS[source.id, source.config])
    Dataset.from_dict(columns, features=features).to_parquet(path)
