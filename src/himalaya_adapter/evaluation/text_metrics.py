"""The scores of generated or chosen texts against their targets, by name; every score lies in [0, 1].

A metric scores one item (``Metric.item``) and a whole test set (``Metric.corpus_scores``). Most are means over the
items. BLEU, macro-F1 and entity F1 are not: their items give counts, the counts are added up over the test set, and
the score is a function of the totals. To resample the items for an interval is then to add the counts up with other
weights, so that the interval is the interval of the very number that is reported.
"""

import ast
import re
import string
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein
from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.chrf import CHRF

from himalaya_adapter import errors
from himalaya_adapter.evaluation.intervals import Array


@dataclass(frozen=True)
class Metric:
    """One way to score predictions.

    Args:
        item: ``(prediction, target) -> score`` of one item.
        counts: Where the score is not the mean of the items: ``(predictions, targets) -> (n, k)``, each item's counts.
        from_totals: The score as a function of the counts' totals, ``(k,) -> float``; given if and only if ``counts``.
    """

    item: Callable[[str, str], float]
    counts: Callable[[Sequence[str], Sequence[str]], Array] | None = None
    from_totals: Callable[[Array], float] | None = None

    def item_scores(self, predictions: Sequence[str], targets: Sequence[str]) -> Array:
        """The score of each item, shape ``(n,)``."""
        return np.array([self.item(p, t) for p, t in zip(predictions, targets, strict=True)], dtype=np.float64)

    def corpus_scores(self, predictions: Sequence[str], targets: Sequence[str], weights: Array) -> Array:
        """The score of the whole test set under each of several weightings of its items.

        Args:
            predictions: The ``n`` predicted texts.
            targets: The ``n`` right texts.
            weights: Shape ``(r, n)``: how often each item counts. A row of ones gives the score of the set itself, a
                row drawn from a multinomial gives one bootstrap resample.

        Returns:
            Shape ``(r,)``.
        """
        if self.counts is None or self.from_totals is None:
            return np.asarray(weights @ self.item_scores(predictions, targets) / weights.sum(axis=1))
        totals = weights @ self.counts(predictions, targets)
        return np.array([self.from_totals(row) for row in totals])


def metric_by_name(name: str) -> Metric:
    """Look a metric up.

    Raises:
        HimalayaError: The name is unknown.
    """
    if name not in METRICS:
        raise errors.unknown_name("metric", name, METRICS)
    return METRICS[name]


# --- labels ----------------------------------------------------------------------------------------------------------


def accuracy(prediction: str, target: str) -> float:
    """1 when the texts are the same, outer white space aside."""
    return float(prediction.strip() == target.strip())


def class_counts(predictions: Sequence[str], targets: Sequence[str]) -> Array:
    """True positives, predictions and targets of each class, shape ``(n, 3 * classes)``."""
    predictions, targets = [p.strip() for p in predictions], [t.strip() for t in targets]
    classes = sorted({*predictions, *targets})
    predicted = np.array([[p == c for c in classes] for p in predictions])
    wanted = np.array([[t == c for c in classes] for t in targets])
    return np.concatenate([predicted & wanted, predicted, wanted], axis=1).astype(np.float64)


def macro_f1_from_totals(totals: Array) -> float:
    """Mean over the classes of ``2 TP / (predictions + targets)``; a class that occurs in neither is left out."""
    hits, predicted, wanted = totals.reshape(3, -1)
    occurs = predicted + wanted > 0
    return float(np.mean(2 * hits[occurs] / (predicted + wanted)[occurs]))


# --- words -----------------------------------------------------------------------------------------------------------

# Chinese and Japanese put no spaces between words, so each of these characters counts as one.
IDEOGRAPH = re.compile(
    r"([\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)


def split_ideographs(text: str) -> str:
    """Put spaces around every Han, Hiragana and Katakana character, as MLQA's script does (Lewis et al., 2020)."""
    return IDEOGRAPH.sub(r" \1 ", text)


# SQuAD removes the articles of English; XTREME and TyDiQA-GoldP apply the same script to every language.
ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces: SQuAD's evaluation script, for any script.

    Source: Rajpurkar et al. (2016), with ``string.punctuation`` widened to Unicode's punctuation.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(ENGLISH_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, target: str) -> float:
    """SQuAD's EM: 1 when the normalised answers are the same."""
    return float(normalise_answer(prediction) == normalise_answer(target))


def token_f1(prediction: str, target: str) -> float:
    """SQuAD's F1: harmonic mean of the precision and recall of the answers' words, counted with repetition.

    When one side has no words left, the score is 1 if both have none, else 0 (SQuAD 2.0).
    """
    predicted, wanted = (split_ideographs(normalise_answer(text)).split() for text in (prediction, target))
    return multiset_f1(predicted, wanted)


def multiset_f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """``2 |predicted ∩ wanted| / (|predicted| + |wanted|)``, counted with repetition; two empty lists agree."""
    if not predicted and not wanted:
        return 1.0
    return 2 * (Counter(predicted) & Counter(wanted)).total() / (len(predicted) + len(wanted))


def rouge_words(text: str) -> list[str]:
    """Words for ROUGE: runs of letters, digits and combining marks of any script, in lower case; single ideographs.

    The package rouge-score keeps only ``[a-z0-9]``: it drops Cyrillic and Chinese entirely and cuts words at a
    diacritic. On ASCII text the two agree. Thai, Lao and Khmer, which put no spaces either, give one word a phrase.
    """
    text = split_ideographs(unicodedata.normalize("NFC", text).lower())
    return "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text).split()


def rouge_l(prediction: str, target: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004), as rouge-score without stemming."""
    predicted, wanted = rouge_words(prediction), rouge_words(target)
    common = LCSseq.similarity(predicted, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


# --- entities --------------------------------------------------------------------------------------------------------

ENTITY_SEPARATOR = re.compile(r"[;,\n]")


def entities(text: str) -> list[str]:
    """The entities in a list such as ``Bank - ORGANIZATION, Helsinki - LOCATION``.

    Separated by comma, semicolon or line; outer brackets, case and the amount of white space do not count.
    """
    text = unicodedata.normalize("NFC", text).strip().strip("[]").casefold()
    return [" ".join(part.split()) for part in ENTITY_SEPARATOR.split(text) if part.strip()]


def entity_f1(prediction: str, target: str) -> float:
    """F1 of the entities of one item, counted with repetition."""
    return multiset_f1(entities(prediction), entities(target))


def entity_counts(predictions: Sequence[str], targets: Sequence[str]) -> Array:
    """Shared, predicted and wanted entities of each item, shape ``(n, 3)``."""
    pairs = [(entities(p), entities(t)) for p, t in zip(predictions, targets, strict=True)]
    rows = [((Counter(p) & Counter(t)).total(), len(p), len(t)) for p, t in pairs]
    return np.array(rows, dtype=np.float64)


def entity_f1_from_totals(totals: Array) -> float:
    """Micro-averaged F1 over all entities of the test set; 1 when nobody names any."""
    hits, predicted, wanted = totals
    return float(2 * hits / (predicted + wanted)) if predicted + wanted else 1.0


# --- translation -----------------------------------------------------------------------------------------------------

BLEU_ORDER = 4  # sacrebleu's default
# A sentence shorter than four words has no 4-gram; "effective order" then uses the orders it has.
SENTENCE_BLEU = BLEU(effective_order=True, force=True)
# By default a Chinese or Japanese sentence would be a single word.
IDEOGRAPH_BLEU = BLEU(effective_order=True, force=True, tokenize="zh")
PERCENT = 100.0
SENTENCE_CHRF = CHRF()


def bleu_score(prediction: str, target: str) -> BLEUScore:
    """sacrebleu's sentence BLEU, tokenizer 13a; ``zh`` where the target holds ideographs, each of them a word.

    By itself ``zh`` leaves Hiragana and Katakana together: a sentence without kanji would be one word.
    """
    if IDEOGRAPH.search(target):
        return IDEOGRAPH_BLEU.sentence_score(split_ideographs(prediction), [split_ideographs(target)])
    return SENTENCE_BLEU.sentence_score(prediction, [target])


def sentence_bleu(prediction: str, target: str) -> float:
    """BLEU of one sentence, exponential smoothing, effective order (sacrebleu)."""
    return min(1.0, float(bleu_score(prediction, target).score) / PERCENT)


def bleu_counts(predictions: Sequence[str], targets: Sequence[str]) -> Array:
    """Lengths of prediction and target, then matched and possible n-grams, shape ``(n, 2 + 2 * BLEU_ORDER)``."""
    scores = [bleu_score(p, t) for p, t in zip(predictions, targets, strict=True)]
    return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=np.float64)


def bleu_from_totals(totals: Array) -> float:
    """Corpus BLEU (Papineni et al., 2002), exponential smoothing: what ``sacrebleu`` prints."""
    prediction_length, target_length, *ngrams = (int(total) for total in totals)
    score = BLEU.compute_bleu(
        ngrams[:BLEU_ORDER], ngrams[BLEU_ORDER:], prediction_length, target_length, smooth_method="exp"
    ).score
    return min(1.0, float(score) / PERCENT)


def chrf(prediction: str, target: str) -> float:
    """chrF2 of one sentence (Popović, 2015; sacrebleu). A test set's chrF is the mean over its items."""
    return min(1.0, float(SENTENCE_CHRF.sentence_score(prediction, [target]).score) / PERCENT)


# --- code ------------------------------------------------------------------------------------------------------------


def edit_similarity(prediction: str, target: str) -> float:
    """``1 − Levenshtein(prediction, target) / max(length)`` over code points; two empty texts agree."""
    a, b = (unicodedata.normalize("NFC", text) for text in (prediction, target))
    return 1.0 - Levenshtein.distance(a, b) / max(len(a), len(b), 1)


def parse_rate(prediction: str, target: str) -> float:
    """1 when the prediction is Python source: a module, or the body of a function whose first line lost its indent.

    It says nothing about what the code does: a single word parses.
    """
    if not prediction.strip():
        return 0.0
    return float(any(parses(source) for source in (textwrap.dedent(prediction), f"def body():\n    {prediction}\n")))


def parses(source: str) -> bool:
    """Whether Python's own parser accepts ``source``; nothing is run."""
    with warnings.catch_warnings():
        # "\d" in a generated string is not this program's business; the category depends on Python's version.
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy),
    "macro_f1": Metric(accuracy, class_counts, macro_f1_from_totals),
    "exact_match": Metric(exact_match),
    "token_f1": Metric(token_f1),
    "entity_f1": Metric(entity_f1, entity_counts, entity_f1_from_totals),
    "bleu": Metric(sentence_bleu, bleu_counts, bleu_from_totals),
    "chrf": Metric(chrf),
    "rouge_l": Metric(rouge_l),
    "edit_similarity": Metric(edit_similarity),
    "parse_rate": Metric(parse_rate),
}
