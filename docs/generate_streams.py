"""The page of all streams' tasks: stream-tables.md of the site.

What has to be read out of the archives is committed in benchmarks/results/streams.json, which
``python docs/generate_streams.py`` writes (it fetches the archives once).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from himalaya_adapter.evaluation.text_metrics import metric_by_name
from himalaya_adapter.storage import read_json, write_json
from himalaya_adapter.streams import Stream, load_stream, stream_names
from himalaya_adapter.streams.catalogue import StreamDefinition, read_definition
from himalaya_adapter.streams.task import SPLITS, Item, Task, TaskSpec

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MEASURED = RESULTS / "streams.json"
LEARNT = RESULTS / "package25" / "lora-independent" / "metrics.json"
HEAD = "| task | what it asks | language | kind | metric | train/val/test | archive | constant | copy |"
LEARNT_HEAD = " frozen | learnt | more than without training |"
ARCHIVE_HEAD = "| archive | MB | licence |"
HUB_HEAD = "| task | what it asks | language | kind | metric | train | data set | splits | revision | licence |"
ABOUT = """\
*Constant* is the test score of always giving the commonest training answer; *copy* that of giving back the
prompt's text. Where a table has them, *frozen* is the score of smollm2-135m before training, and *learnt* that
of a fresh LoRA (r = 8, learning rate 1e-3, at most 400 training items and 100 test items of that task alone)
with its 95 % interval. The last column says whether that interval lies above everything that needs no training.
[Streams](streams.md) says how tasks are made and what to know about them.
"""
SHOWN_OF_A_COMMIT = 8  # characters


def page() -> str:
    """One table per stream: of archives with the scores of two answers that need no model, of the hub with where its
    data comes from."""
    read, shown = read_json(MEASURED), {}
    tables = ["# All streams and tasks\n", ABOUT]
    for name in stream_names():
        definition = read_definition(name)
        tables.append(_table(definition, read[name]) if name in read else _hub_table(definition, shown))
        shown |= {spec.name: spec for spec in definition.tasks}
    return "\n".join(tables)


def measured(stream: Stream) -> dict[str, dict[str, Any]]:
    """Of each task the items of its splits, and the scores of answers that need no model."""
    return {
        task.name: {split: len(task.split(split)) for split in SPLITS}
        | {"constant": _rounded(constant_score(task)), "copy": _rounded(copy_score(task))}
        for task in stream.tasks
    }


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 2)


def packaged() -> dict[str, Stream]:
    """The streams that need no hub."""
    names = [name for name in stream_names() if not read_definition(name).tasks[0].source.hub]
    return {name: load_stream(name) for name in names}


def constant_score(task: Task) -> float:
    """The test score of always giving the commonest training target."""
    commonest = Counter(item.target for item in task.train).most_common(1)[0][0]
    return _score(task, [commonest] * len(task.test))


def copy_score(task: Task) -> float | None:
    """The test score of giving back what the prompt says; ``None`` if that is more than one field, or for labels."""
    pieces = list(Formatter().parse(task.spec.template))
    fields = [field for _, field, _, _ in pieces if field is not None]
    if task.spec.labels or len(fields) != 1:
        return None
    before, after = pieces[0][0], "".join(text for text, _, _, _ in pieces[1:])
    return _score(task, [_between(item, before, after) for item in task.test])


def _between(item: Item, before: str, after: str) -> str:
    return item.prompt.removeprefix(before).removesuffix(after)


def _score(task: Task, answers: list[str]) -> float:
    targets = [item.target for item in task.test]
    return float(metric_by_name(task.spec.metric).corpus_scores(answers, targets, np.ones((1, len(targets))))[0])


def _table(definition: StreamDefinition, read: Mapping[str, Any]) -> str:
    used, learnt = definition.used_archives(), _learnt(definition.name)
    lines = [f"## {definition.name}", "", definition.description, ""]
    head = HEAD + (LEARNT_HEAD if learnt else "")
    lines += [head, "|" + "---|" * head.count(" |")]
    for spec in definition.tasks:
        row = _row(spec, read[spec.name])
        lines.append(row + _after_learning(read[spec.name], learnt[spec.name]) if learnt else row)
    lines += ["", ARCHIVE_HEAD, "|" + "---|" * ARCHIVE_HEAD.count(" |")]
    lines += [f"| {one.requirement} | {one.megabytes} | {one.licence} |" for one in used.values()]
    lines.append(f"| all | {sum(one.megabytes for one in used.values()):.1f} | |")
    return "\n".join(lines) + "\n"


def _learnt(stream: str) -> dict[str, Any]:
    """What the committed run that learns every task of ``stream`` by itself has measured, by task; empty if none."""
    metrics = read_json(LEARNT)
    return {task["name"]: task for task in metrics["tasks"]} if metrics["stream"] == stream else {}


def _after_learning(read: Mapping[str, Any], learnt: Mapping[str, Any]) -> str:
    """Scores before and after learning, and whether the latter's interval lies above all that needs no learning."""
    before, after = learnt["before"], learnt["after_learning"]
    without = max(before["score"], read["constant"], read["copy"] or 0.0)
    answer = "yes" if after["low"] > without else "**no**"
    return f" {before['score']:.2f} | {after['score']:.2f} [{after['low']:.2f}, {after['high']:.2f}] | {answer} |"


def _hub_table(definition: StreamDefinition, shown: Mapping[str, TaskSpec]) -> str:
    lines = [f"## {definition.name}", "", definition.description, ""]
    if all(shown.get(spec.name) == spec for spec in definition.tasks):
        return "\n".join([*lines, f"Order: {', '.join(spec.name for spec in definition.tasks)}."]) + "\n"
    return "\n".join([*lines, HUB_HEAD, "|" + "---|" * HUB_HEAD.count(" |"), *map(_hub_row, definition.tasks)]) + "\n"


def _hub_row(spec: TaskSpec) -> str:
    hub = spec.source.hub
    assert hub is not None, "every stream is from archives or from the hub"
    kind = f"{spec.kind}, {len(spec.labels)}" if spec.labels else spec.kind
    source = f"{hub.id} ({hub.config})" if hub.config else hub.id
    cells = (spec.name, spec.description, spec.language, kind, spec.metric, f"≤ {spec.caps.train}", source)
    return f"| {' | '.join((*cells, ', '.join(hub.splits), hub.revision[:SHOWN_OF_A_COMMIT], hub.licence))} |"


def _row(spec: TaskSpec, read: Mapping[str, Any]) -> str:
    kind = f"{spec.kind}, {len(spec.labels)}" if spec.labels else spec.kind
    sizes = "/".join(str(read[split]) for split in SPLITS)
    scores = ["" if read[key] is None else f"{read[key]:.2f}" for key in ("constant", "copy")]
    cells = (spec.name, spec.description, spec.language, kind, spec.metric, sizes, str(spec.source.archive), *scores)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write_json(MEASURED, {name: measured(stream) for name, stream in packaged().items()})
