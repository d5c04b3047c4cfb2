"""What runs were made with, and what their evaluation cost."""

from collections.abc import Sequence

from himalaya_adapter.report.metric_table import format_interval, format_seconds, format_value
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.report.table import LONG, Table, Text, numbers, table, words

HASH_DIGITS = 16  # shown of a SHA-256; enough to tell two data sets apart by eye
NOT_OF_THE_MACHINE = ("tasks", "data_hashes", "backbone_sizes", "format")  # of environment.json, shown elsewhere


def evaluation_cost(runs: Sequence[RunRecord]) -> list[Table]:
    """What the evaluation of each run cost; no table if one has not recorded it."""
    if any("evaluation_cost" not in run.metrics for run in runs):
        return []
    rows = []
    for run in runs:
        cost, measured = run.metrics["evaluation_cost"], ", ".join(map(str, run.metrics["measured_rows"]))
        seconds = [format_seconds(cost[key]) for key in ("seconds_per_task", "seconds", "reused_seconds")]
        share = f"{100 * cost['share_of_run']:.0f} %"
        values = numbers(str(cost["evaluations"]), *seconds[:2], share, str(cost["reused"]), seconds[2])
        rows.append((*words(run.run_id), *values, *words(measured)))
    columns = ("evaluations", "time of one", "time of all", "share of the run", "reused", "time saved")
    header = (*words("run"), *numbers(*columns), *words("all tasks so far are scored after task"))
    return [table("cost", header, rows, folded=len(runs) > LONG)]


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
            rows.append((*words(run.run_id, latency["subject"], machine, step), *numbers(*times), overhead))
    header = (*words("run", "what", "machine", "step"), *numbers("frozen model", "with the adapter", "overhead"))
    return [table("cpu_latency", header, rows)] if rows else []


def environment(runs: Sequence[RunRecord]) -> Table:
    """Of every key of ``environment.json`` the different values, each with the runs that have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.environment if key not in NOT_OF_THE_MACHINE):
        for run in runs:
            value = run.environment.get(key)
            found.setdefault((key, "–" if value is None else str(value)), []).append(run.run_id)
    rows = tuple(
        (*words(key), Text(value, "" if len(names) == len(runs) else ", ".join(names), words=True))
        for (key, value), names in found.items()
    )
    return table("environment", words("what", "of the runs" if len(runs) > 1 else "value"), rows)


def data_hashes(run: RunRecord, splits: Sequence[str]) -> Table:
    """SHA-256 of the items of each task."""
    hashes = run.environment.get("data_hashes", {})
    rows = tuple(
        words(task, *(hashes.get(task, {}).get(split, "–")[:HASH_DIGITS] for split in splits)) for task in run.tasks
    )
    return table("hashes", words("task", *splits), rows, folded=len(rows) > LONG)
