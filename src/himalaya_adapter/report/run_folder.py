"""Reads a finished run from its folder and refuses to compare runs that were not measured alike."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from himalaya_adapter.documents import parse_document, read_text
from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.evaluation.item_scores import check_score, read_item_scores
from himalaya_adapter.evaluation.metrics import MEASURES
from himalaya_adapter.evaluation.paired_tests import ScoredRun
from himalaya_adapter.experiments.keys import completed
from himalaya_adapter.identity import opened

FORMAT = 1
TASK_END = "task_end"
SAME = 1e-9  # between two ways of adding up the same numbers
REQUIRED_METRICS = ("method", "method_name", "backbone", "stream", "seed", "retained_accuracy", "tasks")

Cell = dict[str, Any]  # score, low, high, n, metric, strict, seconds: one entry of the accuracy matrix


@dataclass(frozen=True)
class RunRecord:
    """What a finished run left in its folder.

    Attributes:
        run_id: Name of the folder.
        folder: The folder.
        metrics: Content of ``metrics.json``.
        tasks: Task names in the order of the stream.
        before: One cell per task, scored before training.
        rows: ``rows[i][j]``, j ≤ i, the cell of task j after training through task i; None where the run saved it.
        task_ends: The last ``task_end`` event of each task, in the order of the stream; a resumed run may have logged
            a task twice, and methods without atoms or norms leave those keys null or out.
        events: Everything else that happened, in order: promotions, evictions and skipped steps.
        environment: Content of ``environment.json``.
        adapter_config: Content of ``adapter/adapter_config.json``, empty if there is none.
        config: Text of ``config.yaml``, empty if there is none.
        samples: Of each task the first test items with the answers to them: ``samples.json``, empty for older runs.
    """

    run_id: str
    folder: Path
    metrics: dict[str, Any]
    tasks: tuple[str, ...]
    before: list[Cell]
    rows: list[list[Cell | None]]
    task_ends: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    adapter_config: dict[str, Any]
    config: str
    samples: list[dict[str, Any]]

    @property
    def after_learning(self) -> list[Cell]:
        """The diagonal of the matrix: each task right after it was learnt."""
        return [cell for index, row in enumerate(self.rows) if (cell := row[index]) is not None]

    @property
    def final(self) -> list[Cell]:
        """The last row of the matrix: each task after the last one."""
        return [cell for cell in self.rows[-1] if cell is not None]

    @property
    def scores(self) -> list[list[float | None]]:
        """The accuracy matrix: ``scores[i][j]``, j ≤ i, None where the run saved it."""
        return [[cell["score"] if cell else None for cell in row] for row in self.rows]

    def scored_items(self) -> ScoredRun | None:
        """The matrix with the scores of the test items behind it; None for a run that no longer has them.

        Raises:
            HimalayaError: They are damaged or belong to another matrix.
        """
        items = read_item_scores(self.folder, self.rows)
        return None if items is None else ScoredRun(self.scores, items)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The values of ``config.yaml`` by their dotted names, also of keys that came later; empty if there is none.

        Raises:
            HimalayaError: It is damaged.
        """
        path = self.folder / "config.yaml"
        written = parse_document(self.config, str(path))
        if written is None:
            return {}
        if not isinstance(written, Mapping):
            raise HimalayaError(f"{path} is damaged (it holds no keys); run again with overwrite=true")
        return completed(written)

    @property
    def split(self) -> str:
        """The items that the run's tasks were scored on."""
        return str(self.metrics.get("split", "test"))

    def test_hash(self, task: str) -> str | None:
        """SHA-256 of the items that ``task`` was scored on, None if the run did not record it."""
        return self.environment.get("data_hashes", {}).get(task, {}).get(self.split)


def read_run(folder: Path) -> RunRecord:
    """Read a finished run.

    Raises:
        HimalayaError: The folder is missing, the run is unfinished, or a file in it is damaged.
    """
    try:
        return _read_run(folder.resolve())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, HimalayaError):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise HimalayaError(f"a file of {folder} is damaged ({reason}); restore it, or run again") from error


def _read_run(folder: Path) -> RunRecord:
    if not folder.is_dir():
        raise HimalayaError(f"there is no run folder {folder}; give the folder that `himalaya run` wrote")
    if not (folder / "metrics.json").is_file():
        raise HimalayaError(
            f"run '{folder.name}' is not finished: {folder} has no metrics.json; "
            "start the same command again to finish it"
        )
    metrics = _read_object(folder / "metrics.json")
    missing = [key for key in REQUIRED_METRICS if key not in metrics]
    if missing:
        raise HimalayaError(f"{folder / 'metrics.json'} lacks {', '.join(missing)}; run again with overwrite=true")
    matrix = _read_object(folder / "matrix.json")
    tasks, rows = matrix.get("tasks", []), matrix.get("rows", [])
    whole = len(rows) == len(tasks) > 0
    whole = whole and all(len(row) > index and row[index] is not None for index, row in enumerate(rows))
    if not whole or None in rows[-1] or len(matrix.get("before", [])) != len(tasks):
        raise HimalayaError(
            f"{folder / 'matrix.json'} is incomplete: {len(tasks)} tasks but {len(rows)} rows; "
            "run again with overwrite=true"
        )
    _check_scores(folder, metrics, matrix["before"], rows)
    config, adapter_config = folder / "config.yaml", folder / "adapter" / "adapter_config.json"
    samples = folder / "samples.json"
    events = _read_events(folder / "events.jsonl")
    task_ends = {event["index"]: event for event in events if event["event"] == TASK_END}
    return RunRecord(
        run_id=folder.name,
        folder=folder,
        metrics=metrics,
        tasks=tuple(tasks),
        before=matrix["before"],
        rows=[row[: index + 1] for index, row in enumerate(rows)],
        task_ends=tuple(task_ends[index] for index in sorted(task_ends)),
        events=tuple(event for event in events if event["event"] != TASK_END),
        environment=_read_object(folder / "environment.json"),
        adapter_config=_read_object(adapter_config) if adapter_config.is_file() else {},
        config=read_text(config) if config.is_file() else "",
        samples=_read_samples(samples) if samples.is_file() else [],
    )


def read_comparable_runs(results_dir: Path, run_ids: Sequence[str]) -> list[RunRecord]:
    """Read runs that may stand in one table: same backbone, stream, task order, prompt length, split and items of it.

    Raises:
        HimalayaError: No or repeated run ids, an unknown or unfinished run, or runs that differ in one of the above.
    """
    if not run_ids:
        raise HimalayaError(f"no runs to compare: {results_dir} holds no finished run, and none is named")
    repeated = sorted({run_id for run_id in run_ids if list(run_ids).count(run_id) > 1})
    if repeated:
        raise HimalayaError(f"run '{repeated[0]}' is named more than once; name every run once")
    for run_id in run_ids:
        if not (results_dir / run_id).is_dir():
            known = [path.parent.name for path in results_dir.glob("*/metrics.json")]
            raise unknown_name(f"run in {results_dir}", run_id, known)
    runs = [read_run(results_dir / run_id) for run_id in run_ids]
    for other in runs[1:]:
        _check_comparable(runs[0], other)
    return runs


def _check_comparable(first: RunRecord, other: RunRecord) -> None:
    pair = f"runs '{first.run_id}' and '{other.run_id}' cannot be compared"
    for key in ("backbone", "stream"):
        if first.metrics[key] != other.metrics[key]:
            raise HimalayaError(
                f"{pair}: {key} '{first.metrics[key]}' against '{other.metrics[key]}'; give runs of one {key}"
            )
    lengths = [run.settings.get("dataset.max_seq_length") for run in (first, other)]
    if None not in lengths and lengths[0] != lengths[1]:
        raise HimalayaError(
            f"{pair}: dataset.max_seq_length {lengths[0]} against {lengths[1]}; give runs whose prompts were cut alike"
        )
    if first.split != other.split:
        raise HimalayaError(
            f"{pair}: evaluation.split {first.split} against {other.split}; give runs that were scored on one split"
        )
    if first.tasks != other.tasks:
        raise HimalayaError(
            f"{pair}: their tasks are {', '.join(first.tasks)} against {', '.join(other.tasks)}; "
            "give runs of the same tasks in the same order"
        )
    for task in first.tasks:
        hashes = first.test_hash(task), other.test_hash(task)
        if None in hashes:
            unrecorded = first if hashes[0] is None else other
            raise HimalayaError(
                f"{pair}: environment.json of '{unrecorded.run_id}' has no hash of the {first.split} items of "
                f"'{task}'; run it again with overwrite=true"
            )
        if hashes[0] != hashes[1]:
            raise HimalayaError(
                f"{pair}: the {first.split} items of '{task}' differ "
                f"({str(hashes[0])[:12]}… against {str(hashes[1])[:12]}…); run both on the same data and limits"
            )


def _check_scores(folder: Path, metrics: Mapping[str, Any], before: list[Cell], rows: list[list[Cell | None]]) -> None:
    """Refuse scores that cannot be, and measures that do not follow from them."""
    for cell in [*before, *(cell for row in rows for cell in row if cell)]:
        check_score(cell)
    scores = [[cell["score"] if cell else None for cell in row[: index + 1]] for index, row in enumerate(rows)]
    told: list[tuple[str, Any, Any]] = [
        (name, metrics.get(name), measure(scores)) for name, measure in MEASURES.items()
    ]
    for task, *cells in zip(metrics["tasks"], before, rows[-1], strict=True):
        told += [
            (task["name"], task.get(key, cell), cell) for key, cell in zip(("before", "final"), cells, strict=True)
        ]
    for name, said, follows in told:
        if isinstance(follows, dict):
            said, follows = said["score"], follows["score"]
        if said is not None and not abs(said - follows) <= SAME:
            raise ValueError(f"metrics.json says {said} for {name}, from matrix.json follows {follows}")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HimalayaError(f"run '{path.parent.name}' has no {path.name} in {path.parent}; run again") from error
    except ValueError as error:
        raise HimalayaError(f"{path} is not valid JSON ({error}); run again with overwrite=true") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise HimalayaError(f"{path} is not in format {FORMAT}; write it with this version of himalaya-adapter")
    return opened(content)


def _parsed(text: str) -> Any:
    """JSON as a run writes it: all numbers are finite."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _read_samples(path: Path) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = _read_object(path)["tasks"]
    for of_task in samples:
        for item in of_task["items"]:
            texts = [of_task["task"], item["prompt"], item["target"], *item["answers"]]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{path.name} holds something else than text")
    return samples


def _read_events(path: Path) -> list[dict[str, Any]]:
    events = []
    for line in read_text(path).splitlines() if path.is_file() else []:
        try:
            event = _parsed(line)
        except ValueError:
            continue  # a run killed while appending leaves half a line; the resumed run logs the event again
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events
