"""What a run did and on what: answers, events, machine, and the cost on a CPU."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from himalaya_adapter.report.formats import format_interval, format_value
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.report.table import LONG, Table, Text, table, words

LONGEST = 240  # characters of a prompt that are shown, its end
NOT_OF_THE_MACHINE = ("tasks", "data_hashes", "backbone_sizes", "format", "earlier")  # of environment.json
Event = dict[str, Any]
KINDS: dict[str, Callable[[Event], bool]] = {
    "atom added": lambda event: event["event"] == "promotion" and "evicted" not in event,
    "own atom replaced": lambda event: event["event"] == "promotion" and "evicted" in event,
    "slot shared": lambda event: event["event"] == "sharing",
    "slot of an earlier task evicted": lambda event: event["event"] == "eviction",
    "step dropped, not finite": lambda event: event["event"] == "skipped_step",
}
MEANS = ("similarity", "survives")  # of the events of a task


def sample_answers(run: RunRecord) -> list[Table]:
    """The first test items of each task with the answers to them; no table for a run that has not kept them."""
    rows = [
        (
            f"{place}. {of_task['task']}",
            "…" * (len(item["prompt"]) > LONGEST) + item["prompt"][-LONGEST:],
            item["target"],
            *item["answers"],
        )
        for place, of_task in enumerate(run.samples, start=1)
        for item in of_task["items"]
    ]
    header = words("task", "prompt", "expected", "frozen model", "right after learning", "now")
    return [table("samples", header, rows, folded=len(run.tasks) > LONG)] if rows else []


def events(run: RunRecord) -> list[Table]:
    """What happened in each task; columns without content are left out, and a table without events."""
    columns: dict[str, list[str]] = {name: [] for name in (*KINDS, *MEANS)}
    for end in run.task_ends:
        of_task = [event for event in run.events if event.get("index") == end["index"]]
        for name, is_kind in KINDS.items():
            columns[name].append(str(sum(map(is_kind, of_task))))
        for key in MEANS:
            values = [event[key] for event in of_task if event.get(key) is not None]
            columns[key].append(format_value(fmean(values) if values else None, "score"))
    shown = {name: texts for name, texts in columns.items() if set(texts) - {"0", "–"}}
    tasks = [f"{end['index'] + 1}. {end['task']}" for end in run.task_ends]
    rows = [*zip(tasks, *shown.values(), strict=True)]
    return [table("events", (*words("task"), *shown), rows, folded=len(rows) > LONG)] if shown else []


def cpu_latency(runs: Sequence[RunRecord]) -> list[Table]:
    """What the adapter costs on the CPU of the machine that each run ended on; no table if no run has measured it."""
    rows = []
    for run in runs:
        latency = run.metrics.get("cpu_latency", {"measurements": []})
        for entry in latency["measurements"]:
            adapted, device = entry["graphs"]["adapted"], latency["device"]
            low, high = (end - 1 for end in adapted["interval"])
            overhead = Text(format_value(adapted["ratio"] - 1, "signed"), format_interval((low, high)))
            step = f"{entry['tokens']} tokens after {entry['past']}"
            times = [f"{entry['graphs'][name]['milliseconds']:.2f} ms" for name in ("base", "adapted")]
            machine = f"{device['machine']}, {device['cpu']}, {entry['threads']} threads"
            rows.append((run.run_id, latency["subject"], machine, step, *times, overhead))
    header = (*words("run", "what", "machine", "step"), "frozen model", "with the adapter", "overhead")
    return [table("cpu_latency", header, rows)] if rows else []


def environment(runs: Sequence[RunRecord]) -> Table:
    """Of every key of ``environment.json`` the different values, each with the runs that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.environment if key not in NOT_OF_THE_MACHINE):
        for run in runs:
            value = run.environment.get(key)
            found.setdefault((key, "–" if value is None else str(value)), []).append(run.run_id)
    rows = [
        (key, Text(text, "" if len(names) == len(runs) else ", ".join(names))) for (key, text), names in found.items()
    ]
    return table("environment", words("what", "of the runs" if len(runs) > 1 else "value"), rows)
