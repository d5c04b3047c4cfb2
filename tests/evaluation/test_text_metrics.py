"""Every text metric against its library or a case worked out by hand, in several scripts."""

import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.text_metrics import METRICS, entities, metric_by_name


@pytest.fixture(autouse=True, scope="module")
def rouge() -> None:
    """Import it, which takes seconds, before Hypothesis looks at the time."""
    import rouge_score.rouge_scorer  # noqa: F401


TRANSLATIONS = [
    ("Der Hund schläft auf dem Sofa.", "Der Hund schläft auf dem großen Sofa."),
    ("Кошка сидит на окне и смотрит на птиц.", "Кошка сидит на окне, смотрит на птиц."),
    ("Paka amelala", "Paka amelala chini ya meza kubwa"),
    ("", "nicht leer"),
    ("völlig anders", "etwas ganz Neues hier"),
]


CHINESE = [
    ("我喜欢吃苹果和香蕉。", "我喜欢吃苹果与香蕉。"),
    ("今天天气很好", "今天的天气非常好，我们去公园吧。"),
    ("Python 是一种语言", "Python 3 是一种编程语言。"),
]


def item(name: str, prediction: str, target: str) -> float:
    return metric_by_name(name).item(prediction, target)


def corpus(name: str, pairs: list[tuple[str, str]]) -> float:
    predictions, targets = zip(*pairs, strict=True)
    return float(metric_by_name(name).corpus_scores(predictions, targets, np.ones((1, len(pairs))))[0])


def test_unknown_metric_suggests_the_nearest() -> None:
    with pytest.raises(HimalayaError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'"):
        metric_by_name("acuracy")


@given(st.text(max_size=20), st.text(max_size=20))
def test_every_score_lies_in_the_unit_interval_and_a_target_scores_one_against_itself(a: str, b: str) -> None:
    for name in METRICS:
        assert 0.0 <= item(name, a, b) <= 1.0, name
    for name in ("accuracy", "exact_match", "token_f1", "entity_f1", "edit_similarity"):
        assert item(name, a, a) == 1.0, name


@pytest.mark.parametrize("name", sorted(METRICS))
def test_weights_count_items_as_often_as_a_repeated_test_set_would(name: str) -> None:
    pairs = [
        ("yes", "yes"),
        ("no", "yes"),
        ("no", "no"),
        ("die Katze schläft heute sehr lang", "die Katze schläft heute"),
    ]
    weights = [4, 1, 0, 2]
    repeated = [pair for pair, count in zip(pairs, weights, strict=True) for _ in range(count)]
    predictions, targets = zip(*pairs, strict=True)
    weighted = metric_by_name(name).corpus_scores(predictions, targets, np.array([weights], dtype=float))[0]
    assert weighted == pytest.approx(corpus(name, repeated))
    assert weighted != pytest.approx(corpus(name, pairs)) or name == "parse_rate"


def test_accuracy_compares_text_and_ignores_outer_space() -> None:
    assert [item("accuracy", p, "Да") for p in ("Да", " Да\n", "да", "")] == [1, 1, 0, 0]


def test_macro_f1_by_hand() -> None:
    # A: 2 hits of 3 predicted, 2 wanted: 4/5. B: 1 hit of 1 predicted, 2 wanted: 2/3. C: predicted never, wanted 1: 0.
    pairs = [("A", "A"), ("A", "A"), ("A", "B"), ("B", "B"), ("D", "C")]
    # D: predicted once, wanted never: 0.
    assert corpus("macro_f1", pairs) == pytest.approx((4 / 5 + 2 / 3 + 0 + 0) / 4)


def test_labels_of_any_script_are_classes() -> None:
    # saúde: 1 hit of 2 predicted, 1 wanted: 2/3. здоровье: 1 of 1, 2 wanted: 2/3. 教育: 1 of 1 and 1: 1.
    pairs = [("saúde", "saúde"), ("saúde", "здоровье"), ("здоровье", "здоровье"), ("教育", " 教育\n")]
    assert corpus("macro_f1", pairs) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert corpus("accuracy", pairs) == pytest.approx(3 / 4)


def test_macro_f1_leaves_out_classes_that_a_resample_does_not_hold() -> None:
    predictions, targets = ["A", "B"], ["A", "C"]
    score = metric_by_name("macro_f1").corpus_scores(predictions, targets, np.array([[2.0, 0.0]]))
    assert score.tolist() == [1.0]


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1),
        ("«Красная площадь»", "красная площадь", 1),
        ("hämeenlinna", "Hameenlinna", 0),
        ("e\N{COMBINING ACUTE ACCENT}cole", "école", 1),
        ("¿Dónde?", "dónde", 1),
        ("$5", "5", 1),
        ("上海。", "上海", 1),
        ("上海", "北京", 0),
        ("Київ", "київ", 1),
    ],
)
def test_exact_match_normalises_as_squad_does_in_any_script(prediction: str, target: str, expected: int) -> None:
    assert item("exact_match", prediction, target) == expected


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("the city of Dar es Salaam", "Dar es Salaam", 2 * 3 / (5 + 3)),
        ("в городе Москве", "в Москве", 2 * 2 / (3 + 2)),
        ("na na na", "na na", 2 * 2 / (3 + 2)),
        ("Helsinki", "Turku", 0.0),
        ("", "Turku", 0.0),
        ("the", "", 1.0),
        ("上海市", "上海", 2 * 2 / (3 + 2)),  # ideographs are words
        ("在上海, Pudong", "上海 Pudong", 2 * 3 / (4 + 3)),
        ("東京タワー", "東京", 2 * 2 / (5 + 2)),
    ],
)
def test_token_f1_by_hand(prediction: str, target: str, expected: float) -> None:
    assert item("token_f1", prediction, target) == pytest.approx(expected)


def test_entities_are_read_from_a_list() -> None:
    text = "[Bank -  ORGANIZATION, Київ - LOCATION; Borrower - PERSON,]"
    assert entities(text) == ["bank - organization", "київ - location", "borrower - person"]


def test_entity_f1_by_hand() -> None:
    pairs = [("A, B, B", "A, B"), ("C", "D, E, F")]
    assert [item("entity_f1", *pair) for pair in pairs] == pytest.approx([2 * 2 / 5, 0.0])
    # Micro average: 2 shared of 4 predicted and 5 wanted.
    assert corpus("entity_f1", pairs) == pytest.approx(2 * 2 / 9)
    assert corpus("entity_f1", [("", "")]) == 1.0
    assert item("entity_f1", "上海 - LOCATION, Міністерство - ORGANIZATION", "上海 - LOCATION") == pytest.approx(2 / 3)
    assert item("entity_f1", "SÃO PAULO - LOCATION", "São  Paulo - location") == 1.0


def test_bleu_is_sacrebleus_corpus_bleu() -> None:
    predictions, targets = zip(*TRANSLATIONS, strict=True)
    expected = sacrebleu.corpus_bleu(list(predictions), [list(targets)]).score / 100
    assert 0.1 < expected < 0.9
    assert corpus("bleu", TRANSLATIONS) == pytest.approx(expected)


def test_bleu_of_chinese_is_sacrebleus_with_its_chinese_tokenizer() -> None:
    predictions, targets = zip(*CHINESE, strict=True)
    expected = sacrebleu.corpus_bleu(list(predictions), [list(targets)], tokenize="zh").score / 100
    assert 0.2 < expected < 0.9
    assert corpus("bleu", CHINESE) == pytest.approx(expected)
    for prediction, target in CHINESE:
        alone = sacrebleu.sentence_bleu(prediction, [target], tokenize="zh").score / 100
        assert item("bleu", prediction, target) == pytest.approx(alone)
        assert item("chrf", prediction, target) == pytest.approx(
            sacrebleu.sentence_chrf(prediction, [target]).score / 100
        )


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ("これはぺんです。", "それはぺんです。"),
        ("コーヒーヲノム", "コーヒーヲノミマス"),
        ("ｶﾀｶﾅ", "ｶﾀｶﾅﾃﾞｽ"),
        ("これは本です。", "これは赤い本です。"),
    ],
)
def test_bleu_of_japanese_counts_characters_with_or_without_kanji(prediction: str, target: str) -> None:
    expected = sacrebleu.sentence_bleu(prediction, [target], tokenize="char").score / 100
    assert 0.1 < expected < 0.9
    assert item("bleu", prediction, target) == pytest.approx(expected)
    assert corpus("bleu", [(prediction, target)]) == pytest.approx(expected)


def test_sentence_bleu_and_chrf_are_sacrebleus() -> None:
    for prediction, target in TRANSLATIONS:
        assert item("bleu", prediction, target) == pytest.approx(
            sacrebleu.sentence_bleu(prediction, [target]).score / 100
        )
        assert item("chrf", prediction, target) == pytest.approx(
            sacrebleu.sentence_chrf(prediction, [target]).score / 100
        )
    assert corpus("chrf", TRANSLATIONS) == pytest.approx(np.mean([item("chrf", *pair) for pair in TRANSLATIONS]))


@given(st.text(st.characters(codec="ascii"), max_size=40), st.text(st.characters(codec="ascii"), max_size=40))
def test_rouge_l_is_rouge_scores_on_ascii(prediction: str, target: str) -> None:
    from rouge_score import rouge_scorer

    library = rouge_scorer.RougeScorer(["rougeL"]).score(target, prediction)["rougeL"].fmeasure
    assert item("rouge_l", prediction, target) == pytest.approx(library)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("кошка сидит на окне", "Кошка спит на окне!", 3 / 4),
        ("yö on pitkä", "päivä on lyhyt", 1 / 3),
        ("वह घर है", "वह घर था", 2 / 3),  # vowel signs are marks, not word ends
        ("c b a", "a b c", 1 / 3),
        ("我喜欢苹果", "我喜欢香蕉。", 3 / 5),
        ("Wörter über Bäume", "wo\N{COMBINING DIAERESIS}rter unter Bäume", 2 / 3),
    ],
)
def test_rouge_l_by_hand_in_other_scripts(prediction: str, target: str, expected: float) -> None:
    assert item("rouge_l", prediction, target) == pytest.approx(expected)


def test_edit_similarity_agrees_with_nltks_levenshtein_distance() -> None:
    import nltk

    generator = random.Random(0)
    for _ in range(100):
        a, b = ("".join(generator.choices("abжü", k=generator.randrange(12))) for _ in range(2))
        longest = max(len(a), len(b))
        expected = 1 - nltk.edit_distance(a, b) / longest if longest else 1.0
        assert item("edit_similarity", a, b) == pytest.approx(expected), (a, b)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("zhōng guó", "zhòng guó", 1 - 1 / 9),
        ("e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}", "été", 1.0),
        ("мир", "пир", 2 / 3),
        ("上海市", "上海", 2 / 3),
        ("return x", "", 0.0),
    ],
)
def test_edit_similarity_by_hand_in_other_scripts(prediction: str, target: str, expected: float) -> None:
    assert item("edit_similarity", prediction, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x):\n    return x + 1", 1),
        ("total = 0\n    for i in x:\n        total += i\n    return total", 1),  # a body that lost its first indent
        ("    return x", 1),
        ('re.match("\\d", x)', 1),
        ("def f(x:\n    return x", 0),
        ("here is some prose", 0),
        ("", 0),
        ("\0", 0),
        ("(" * 5000, 0),
        ("-" * 100_000 + "1", 0),
        ("x." * 50_000 + "y", 0),
        ("имя = 'мир'", 1),
        ("名字 = 1", 1),
        ("зачем эта функция", 0),
    ],
)
def test_parse_rate(source: str, expected: int) -> None:
    assert item("parse_rate", source, "anything") == expected
