"""Reads a finished run from its folder and refuses to compare runs that were not measured alike."""

import json
import math
from collections.abc import Sequence
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
SEQUENTIAL, REPLAY = "sequential", "replay"  # protocols of a run
UNRANKED = ("frozen", "joint", REPLAY)
TASK_END = "task_end"
ASKED = ("kind", "labels", "max_new_tokens", "answers_are_lines")  # of a task, beside its items and its metric
SAME = 1e-9  # between two ways of adding up the same numbers
REQUIRED_METRICS = {"method", "method_name", "backbone", "stream", "seed", "retained_accuracy", "tasks"}
WRONG = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)  # what a damaged file raises

Cell = dict[str, Any]  # score, low, high, n, metric, strict, seconds: one entry of the accuracy matrix


@dataclass(frozen=True)
class RunRecord:
    """What a finished run left in its folder.

    Attributes:
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
        settings: Its values by their dotted names, also of keys that came later; empty if there is none.
        samples: Of each task the first test items with the answers to them: ``samples.json``, empty for older runs.
    """

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
    settings: dict[str, Any]
    samples: list[dict[str, Any]]

    @property
    def run_id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def protocol(self) -> str:
        """What it learnt when: the stream task by task (``sequential``), or as a bound."""
        return str(self.metrics.get("protocol", SEQUENTIAL))

    @property
    def is_bound(self) -> bool:
        """Whether it is a bound to compare with (frozen, independent, joint, replay) and does not learn the stream."""
        return self.protocol != SEQUENTIAL

    @property
    def is_ranked(self) -> bool:
        """Whether it may be the best of a comparison: frozen and joint learn no stream, and replay keeps data."""
        return self.protocol not in UNRANKED

    @property
    def numbered(self) -> tuple[str, ...]:
        """``3. name`` of each task: its place in the stream and its name."""
        return tuple(f"{place}. {name}" for place, name in enumerate(self.tasks, start=1))

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

    @property
    def split(self) -> str:
        """The items that the run's tasks were scored on."""
        return str(self.metrics.get("split", "test"))

    @cached_property
    def test_hashes(self) -> dict[str, str]:
        """SHA-256 of the items that each task was scored on."""
        return {task: self.environment["data_hashes"][task][self.split] for task in self.tasks}


def read_run(folder: Path) -> RunRecord:
    """Read a finished run.

    Raises:
        HimalayaError: The folder is missing, the run is unfinished, or a file in it is damaged.
    """
    try:
        return _read_run(folder.resolve())
    except HimalayaError:
        raise
    except WRONG as error:
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
    matrix = _read_object(folder / "matrix.json")
    tasks, rows = matrix["tasks"], matrix["rows"]
    if not len(tasks) == len(rows) == len(matrix["before"]):
        raise ValueError(f"matrix.json is incomplete: {len(tasks)} tasks but {len(rows)} rows")
    adapter_config, samples = folder / "adapter" / "adapter_config.json", folder / "samples.json"
    config = read_text(folder / "config.yaml") if (folder / "config.yaml").is_file() else ""
    events = _read_events(folder / "events.jsonl")
    task_ends = {event["index"]: event for event in events if event["event"] == TASK_END}
    run = RunRecord(
        folder=folder,
        metrics=_read_object(folder / "metrics.json"),
        tasks=tuple(tasks),
        before=matrix["before"],
        rows=[row[: index + 1] for index, row in enumerate(rows)],
        task_ends=tuple(task_ends.values()),
        events=tuple(event for event in events if event["event"] != TASK_END),
        environment=_read_object(folder / "environment.json"),
        adapter_config=_read_object(adapter_config) if adapter_config.is_file() else {},
        config=config,
        settings=completed(dict(parse_document(config, str(folder / "config.yaml")))) if config else {},
        samples=_read_object(samples, needs_hash=True)["tasks"] if samples.is_file() else [],
    )
    if missing := REQUIRED_METRICS - run.metrics.keys():
        raise ValueError(f"metrics.json lacks {', '.join(sorted(missing))}")
    _check_scores(run)
    if not all(run.test_hashes.values()):
        raise ValueError(f"environment.json lacks hashes of the {run.split} items")
    return run


def finished_runs(results_dir: Path) -> list[str]:
    """The names of the finished runs in a folder; what a killed process was about to delete is hidden, and is none."""
    return sorted(path.parent.name for path in results_dir.glob("[!.]*/metrics.json"))


def read_comparable_runs(results_dir: Path, run_ids: Sequence[str]) -> list[RunRecord]:
    """Read runs that may stand in one table: same backbone, stream, task order, prompt length, split and items of it.

    Raises:
        HimalayaError: No run ids, an unknown or unfinished run, or runs that differ in one of the above.
    """
    if not run_ids:
        raise HimalayaError(f"no runs to compare: {results_dir} holds no finished run, and none is named")
    for run_id in run_ids:
        if not (results_dir / run_id).is_dir():
            raise unknown_name(f"run in {results_dir}", run_id, finished_runs(results_dir))
    runs = [read_run(results_dir / run_id) for run_id in run_ids]
    measured: dict[str, tuple[Any, str]] = {}  # with the first run that has recorded it
    for run in runs:
        for what, found in _measured(run).items():
            known, by = measured.setdefault(what, (found, run.run_id))
            if found != known:
                raise HimalayaError(
                    f"runs '{by}' and '{run.run_id}' cannot be compared: {what} {known!r} "
                    f"against {found!r}; give runs that were measured alike"
                )
    return runs


def _measured(run: RunRecord) -> dict[str, Any]:
    """What has to be the same in runs that are compared; older ones have not recorded all of it."""
    facts = {
        **{key: run.metrics[key] for key in ("backbone", "stream")},
        "backbone_revision": run.environment.get("backbone_revision"),
        "dataset.max_seq_length": run.settings.get("dataset.max_seq_length"),
        "evaluation.split": run.split,
        "order of tasks": ", ".join(run.tasks),
        **{f"hash of the {run.split} items of '{task}'": found for task, found in run.test_hashes.items()},
        **{f"metric of '{task}'": cell["metric"] for task, cell in zip(run.tasks, run.final, strict=True)},
        **{f"{key} of '{task}'": of[key] for task, of in run.environment.get("tasks", {}).items() for key in ASKED},
    }
    return {what: fact for what, fact in facts.items() if fact is not None}


def _check_scores(run: RunRecord) -> None:
    """Refuse scores that cannot be, and measures that do not follow from them."""
    for cell in [*run.before, *(cell for row in run.rows for cell in row if cell)]:
        check_score(cell)
    told = {name: (run.metrics.get(name), measure(run.scores)) for name, measure in MEASURES.items()}
    for task, before, final in zip(run.metrics["tasks"], run.before, run.final, strict=True):
        for key, cell in (("before", before), ("final", final)):
            told[f"{task['name']}, {key}"] = task[key]["score"], cell["score"]
    for name, (said, follows) in told.items():
        if said is not None and not abs(said - follows) <= SAME:
            raise ValueError(f"metrics.json says {said} for {name}, from matrix.json follows {follows}")


def _read_object(path: Path, *, needs_hash: bool = False) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = opened(_parsed(text), needs_hash=needs_hash)
    except WRONG as error:
        raise HimalayaError(f"{path} is damaged ({one_line(error)}); restore it, or run again") from error
    if content.get("format", FORMAT) != FORMAT:
        raise HimalayaError(f"{path} is not in format {FORMAT}; write it with this version of himalaya-adapter")
    return content


def _parsed(text: str) -> Any:
    """JSON as a run writes it: all numbers are finite."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


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
