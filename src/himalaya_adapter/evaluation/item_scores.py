"""The item scores of a finished run in one small file: ``item_scores.json``, numbers and nothing else.

Paired tests between methods need what each test item scored; this file is what results that are handed on or committed
keep of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.evaluation.metrics import ItemScores
from himalaya_adapter.storage import read_json, write_atomic

FILE = "item_scores.json"
FORMAT = 1
DECIMALS = 4  # far below what one item moves a mean
ROUNDING = 10.0**-DECIMALS


def check_score(score: Mapping[str, Any], items: Sequence[float] | None = None) -> None:
    """Refuse a stored score that cannot be one.

    Args:
        score: A cell of the accuracy matrix (`scoring.TaskScore.cell`).
        items: The scores of its items; where the metric is their mean, it must be the score.

    Raises:
        ValueError: A number is outside of [0, 1], there are no items, or a number disagrees with the others.
        KeyError, TypeError: A number is missing or is none.
    """
    low, value, high, n, name = (score[key] for key in ("low", "score", "high", "n", "metric"))
    if not -ROUNDING <= low <= value + ROUNDING <= high + 2 * ROUNDING <= 1 + 3 * ROUNDING:
        raise ValueError(f"the score {value} with its interval {low} to {high} does not lie in [0, 1]")
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of items is {n!r}")
    if items is None:
        return
    from himalaya_adapter.evaluation.text_metrics import METRICS  # slow to import

    total = sum(items)
    within = math.isfinite(total) and items and -ROUNDING <= min(items) <= max(items) <= 1 + ROUNDING
    if len(items) != n or not within:
        raise ValueError(f"it does not hold a score in [0, 1] for each of {n} items")
    metric = METRICS.get(name)
    if metric and metric.counts is None and not abs(total / n - value) <= ROUNDING:
        raise ValueError(f"the score {value} is not the mean {total / n:.6f} of its items' scores")


def write_item_scores(folder: Path, rows: ItemScores) -> None:
    """Write the scores of the test items: ``rows[i][j]`` of task j after task i, None where nothing was measured."""
    kept = [[cell and [_short(score) for score in cell] for cell in row] for row in rows]
    write_atomic(folder / FILE, json.dumps({"format": FORMAT, "rows": kept}, separators=(",", ":")) + "\n")


def _short(score: float) -> float:
    rounded = round(score, DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded  # "1" is half as long as "1.0"


def read_item_scores(folder: Path, cells: Sequence[Sequence[Mapping[str, Any] | None]]) -> ItemScores | None:
    """The item scores of a run; None if they are not kept.

    Args:
        folder: The run's folder.
        cells: The matrix, ``cells[i][j]`` for j ≤ i; None where nothing was scored.

    Raises:
        HimalayaError: The file is damaged or does not agree with the matrix.
        OSError: It is there and cannot be read, which says nothing about what is in it.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        rows: ItemScores = read_json(path)["rows"]
        for row, of_row in zip(cells, rows, strict=True):
            for cell, items in zip(row, of_row, strict=True):
                if (cell is None) != (items is None):
                    raise ValueError("it holds other scores than matrix.json")
                if cell is not None:
                    check_score(cell, items)
    except (ValueError, KeyError, TypeError) as error:
        raise HimalayaError(f"{path} is damaged ({one_line(error)}); delete it or run again") from error
    return rows
