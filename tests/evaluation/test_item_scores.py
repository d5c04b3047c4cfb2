"""The small file of a run's item scores: what goes in comes out, and what is damaged is refused in one line."""

import re
from pathlib import Path

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.item_scores import FILE, read_item_scores, write_item_scores

ROWS = [[[1.0, 0.0, 1.0]], [None, [0.123456, 0.5]], [[0.0, 0.0, 1.0], [2 / 3, 1.0], [0.0]]]
KEPT = [[[1, 0, 1]], [None, [0.1235, 0.5]], [[0, 0, 1], [0.6667, 1], [0]]]
CELLS = [
    [
        scores and {"n": len(scores), "score": sum(scores) / len(scores), "low": 0, "high": 1, "metric": "accuracy"}
        for scores in row
    ]
    for row in ROWS
]


def test_round_trip_in_few_bytes_that_are_numbers(tmp_path: Path) -> None:
    write_item_scores(tmp_path, ROWS)
    assert read_item_scores(tmp_path, CELLS) == KEPT
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert text == '{"format":1,"rows":[[[1,0,1]],[null,[0.1235,0.5]],[[0,0,1],[0.6667,1],[0]]]}\n'
    assert re.sub(r"[\d.,\[\]]|null", "", text) == '{"format":"rows":}\n'


def test_without_the_file_there_are_none(tmp_path: Path) -> None:
    assert read_item_scores(tmp_path, CELLS) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format":1,"rows":[[[1,0,1]],[nu', "is damaged"),
        ('{"format":1}', "is damaged"),
        (
            '{"format":1,"rows":[[[1,0]],[null,[0,1]],[[0,0,1],[0,1],[0]]]}',
            "does not hold a score in .* for each of 3 items",
        ),
        ('{"format":1,"rows":[[[1,0,"x"]],[null,[0,1]],[[0,0,1],[0,1],[0]]]}', "is damaged"),
        ('{"format":1,"rows":[[[1,0,1]],[null,[0.1235,0.5]],[[0,0,1],[0.6667,9]]]}', "is damaged"),
        ('{"format":1,"rows":[[[1,0,1]],[null,[0.1235,0.5]],[[0,0,1],[0.6667,9],[0]]]}', "does not hold a score in"),
        ('{"format":1,"rows":[[[1,0,1]],[null,[0.1235,0.7]],[[0,0,1],[0.6667,1],[0]]]}', "is not the mean 0.411750"),
        ('{"format":1,"rows":[[[1,0,1]],[[0],[0.1235,0.5]],[[0,0,1],[0.6667,1],[0]]]}', "other scores than matrix"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(HimalayaError, match=reason) as caught:
        read_item_scores(tmp_path, CELLS)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file of Linux that nobody can read")
def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """Deleting it, or running again, is no advice then: it may be whole."""
    (tmp_path / FILE).symlink_to("/proc/self/mem")  # a file whose first bytes cannot be read, not even by root
    with pytest.raises(OSError, match="Input/output error"):
        read_item_scores(tmp_path, CELLS)
