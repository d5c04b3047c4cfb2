"""The tables of every task: its scores before training, right after learning and at the end, and sample answers."""

from collections.abc import Sequence

from himalaya_adapter.report.charts import numbered
from himalaya_adapter.report.method_groups import MethodGroup, alone
from himalaya_adapter.report.metric_table import MANY_METHODS, format_interval, format_seconds, format_value
from himalaya_adapter.report.run_folder import Cell, RunRecord
from himalaya_adapter.report.table import LONG, Table, Text, has_seeds, numbers, table, whiskers_legend, words

TWO = 2  # methods up to which the change of every task has room
LEGEND = "Learnt: right after training on the task. Now: after the last task. "
STRICT = "Exact match: share of generated answers that equal the target, now. "
EXTRA_SCORES = {"unlabelled": "without label", "released": "release file"}  # only some methods have them
TIMES = ("frozen model", "right after learning", "now")
LONGEST = 240  # characters of a prompt that are shown, its end


def task_tables(groups: Sequence[MethodGroup]) -> list[Table]:
    """Every task before, after learning and now; of many methods now and after learning in a table each."""
    if len(groups) >= MANY_METHODS:
        return _of_many(groups)
    first = groups[0].first
    parts = ("learnt", "now", "change") if len(groups) <= TWO else ("learnt", "now")
    cells = [(group.after_learning, group.final, len(group.runs) > 1) for group in groups]
    rows = []
    for index, name in enumerate(_task_names(first)):
        row = [*name, _score(first.before[index])]
        for learnt, final, varies in cells:
            change = Text(format_value(final[index]["score"] - learnt[index]["score"], "signed"))
            row += [_score(learnt[index], varies), _score(final[index], varies), change][: len(parts)]
        rows.append(tuple(row))
    header = [*words("task", "metric"), *numbers("n", "frozen")]
    header += [Text(group.label, part, look=group.look) for group in groups for part in parts]
    return [Table("tasks", "Task by task", tuple(header), tuple(rows), LEGEND + whiskers_legend(groups).strip())]


def task_table_of(run: RunRecord) -> Table:
    """The same of one run, with all that is known of a task."""
    (plain,) = task_tables([alone(run)])
    tasks = run.metrics["tasks"]
    extra = {key: title for key, title in EXTRA_SCORES.items() if key in tasks[0]}
    timed = "eval_seconds" in tasks[0]
    rows = [
        (
            *row,
            Text(format_value(task["final"].get("strict"), "score")),
            *(Text(format_value(task[key]["score"], "score")) for key in extra),
            *([Text(format_seconds(task["eval_seconds"]))] if timed else ()),
        )
        for row, task in zip(plain.rows, tasks, strict=True)
    ]
    header = (*plain.header[:4], *numbers("learnt", "now", "change", "exact match", *extra.values()))
    legend = plain.legend + " " + STRICT + ("Time: of one evaluation of the task, on average." if timed else "")
    return Table("tasks", "Task by task", (*header, *numbers("time")) if timed else header, tuple(rows), legend)


def sample_answers(run: RunRecord) -> list[Table]:
    """The first test items of each task with the answers to them; no table for a run that has not kept them."""
    rows = [
        (
            *words(f"{place}. {sample['task']}", prompt[-LONGEST:], item["target"]),
            *words(*item["answers"]),
        )
        for place, sample in enumerate(run.samples, start=1)
        for item in sample["items"]
        for prompt in ["…" * (len(item["prompt"]) > LONGEST) + item["prompt"]]
    ]
    header = words("task", "prompt", "expected", *TIMES)
    return [table("samples", header, rows, folded=len(run.tasks) > LONG)] if rows else []


def _of_many(groups: Sequence[MethodGroup]) -> list[Table]:
    first = groups[0].first
    tables = []
    for topic, title, cells in (
        ("tasks", "Task by task, after the last task", [group.final for group in groups]),
        ("tasks_learnt", "Task by task, right after learning", [group.after_learning for group in groups]),
    ):
        rows = []
        for index, name in enumerate(_task_names(first)):
            scores = [of_method[index]["score"] for of_method in cells]
            best = max((one for one, group in zip(scores, groups, strict=True) if not group.is_bound), default=None)
            of_methods = (
                Text(
                    format_value(score, "score"),
                    _deviation(of_method[index]) if len(group.runs) > 1 else "",
                    bold=score == best and not group.is_bound,
                )
                for score, of_method, group in zip(scores, cells, groups, strict=True)
            )
            rows.append((*name, Text(format_value(first.before[index]["score"], "score")), *of_methods))
        header = [*words("task", "metric"), *numbers("n", "frozen")]
        header += [Text(group.label, look=group.look) for group in groups]
        legend = "Bold is best. ± is the standard deviation over seeds." if has_seeds(groups) else "Bold is best."
        tables.append(Table(topic, title, tuple(header), tuple(rows), legend, folded=True))
    return tables


def _task_names(run: RunRecord) -> list[tuple[Text, ...]]:
    names = zip(numbered(run.tasks), run.final, strict=True)
    return [(*words(name, cell["metric"]), Text(str(cell["n"]))) for name, cell in names]


def _score(cell: Cell, varies: bool = False) -> Text:
    small = _deviation(cell) if varies else format_interval((cell["low"], cell["high"]))
    return Text(format_value(cell["score"], "score"), small)


def _deviation(cell: Cell) -> str:
    return f"± {format_value((cell['high'] - cell['low']) / 2, 'score')}"
