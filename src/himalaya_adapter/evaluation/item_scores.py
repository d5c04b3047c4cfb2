"""The item scores of a finished run in one small file: ``item_scores.json``, numbers and nothing else.

Paired tests between methods need what each test item scored. A run keeps that in ``evaluations/``, a file per score
with much beside; this file is what results that are handed on or committed keep of it.
"""

import json
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.storage import read_json, write_atomic

FILE = "item_scores.json"
FORMAT = 1
DECIMALS = 4  # far below what one item moves a mean

ItemScores = Sequence[Sequence[Sequence[float] | None]]


def write_item_scores(folder: Path, rows: ItemScores) -> None:
    """Write the scores of the test items: ``rows[i][j]`` of task j after task i, None where nothing was measured."""
    kept = [[cell and [_short(score) for score in cell] for cell in row] for row in rows]
    write_atomic(folder / FILE, json.dumps({"format": FORMAT, "rows": kept}, separators=(",", ":")) + "\n")


def _short(score: float) -> float:
    rounded = round(score, DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded  # "1" is half as long as "1.0"


def read_item_scores(folder: Path, sizes: Sequence[Sequence[int | None]]) -> ItemScores | None:
    """The item scores of a run, from ``item_scores.json`` or else from ``evaluations/``; None if neither is there.

    Args:
        folder: The run's folder.
        sizes: ``sizes[i][j]``, how many items the matrix says were scored; None where nothing was.

    Raises:
        HimalayaError: A file is damaged or holds other numbers of items than the matrix says.
    """
    path = folder / FILE
    try:
        if path.is_file():
            rows = read_json(path)["rows"]
        else:
            path = folder / "evaluations"
            if not path.is_dir():
                return None
            rows = [
                [
                    None if n is None else read_json(path / f"after_{i}_task_{j}.json")["item_scores"]
                    for j, n in enumerate(row)
                ]
                for i, row in enumerate(sizes)
            ]
        found = [[cell if cell is None else len(cell) for cell in row] for row in rows]
        numbers = all(isinstance(score, Real) for row in rows for cell in row for score in cell or ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HimalayaError(f"{path} is damaged ({' '.join(str(error).split())}); delete it or run again") from error
    if found != [list(row) for row in sizes] or not numbers:
        raise HimalayaError(f"{path} does not hold a score for each test item of matrix.json; delete it or run again")
    return list(rows)
