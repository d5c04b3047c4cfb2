"""The tables and pictures of the results, from the committed runs.

``python docs/generate_results.py`` writes those of README.md and docs/results.md; all others are the page
result-tables.md of the site (``tables_page``).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import bits_results
import numpy as np
from expected_results import expected_results, expected_table

from himalaya_adapter.budget import BYTES_PER_MB, count_budget, count_work
from himalaya_adapter.evaluation.intervals import percentile_interval
from himalaya_adapter.evaluation.metrics import diagonal, lower_triangle, resampled
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.report import paper, score_figures
from himalaya_adapter.report.charts import Figure
from himalaya_adapter.report.comparison import Comparison, compare
from himalaya_adapter.report.formats import format_deviation, format_value
from himalaya_adapter.report.markdown import document
from himalaya_adapter.report.method_groups import MethodGroup, group_by_method, spread
from himalaya_adapter.report.result_pages import comparison_tables
from himalaya_adapter.report.run_folder import RunRecord, read_comparable_runs, read_run
from himalaya_adapter.report.score_tables import ARROWS
from himalaya_adapter.storage import read_json
from himalaya_adapter.stream_metrics import METRICS, Kind

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGE, README = DOCS / "results.md", ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
ABLATIONS, HUNDRED = "ablations", "hundred"
HIMALAYAS, BOUNDS = ("himalaya", "unprotected"), ("lora-independent", "lora-independent-fast", "frozen")
IN_SHORT = (ABLATIONS, HUNDRED, "first10", "first15", "last15", "reversed25")  # as a whole, not task by task
MAIN, OWN, TWELVE = "package25", "himalaya-24atoms-package25", "himalaya-channels-package25"
FEW_ATOMS, SECOND_BACKBONE, THREE_KINDS = "capacity/source-atoms", "gemma10", "three_kinds"
SIX_TASKS = "rivals"
QUARTER = 25  # tasks of the hundred: the same kinds in the same order, with other items
MANY_TASKS, NOT_YET = RESULTS / "many_tasks.json", "Not measured yet: `python benchmarks/many_tasks.py`.\n"
VARIANTS, WEAK = ("| HIMALAYA 0.1, ", "| HIMALAYA, strict"), ("| O-LoRA", "| IA3", "| Frozen")
PAIRED, EXPECTED = "Paired tests", "The original plan's expected results"
# Folder of the results -> its runs, in the order in which they are shown; without those that have a config and no
# results yet.
SECTIONS = {
    "demo": ["himalaya", "lora"],
    "package25": [
        *(OWN, TWELVE, "himalaya-anchored-package25"),
        "himalaya-package25",
        *("himalaya-warm-package25", "himalaya-unprotected-package25"),
        *("himalaya-strict-package25", "lilac-package25"),
        *("loreft-package25", "olora-package25", "ia3-package25", "lora-ewc-package25", "lora-package25"),
        *("loreft-independent-package25", "frozen"),
        *(f"{OWN}-seed1", f"{TWELVE}-seed1", "himalaya-anchored-package25-seed1", "himalaya-package25-seed1"),
        *("loreft-independent-package25-seed1", "lora-ewc-package25-seed1"),
    ],
    "reversed25": ["himalaya", "lora-ewc"],
    ABLATIONS: [
        *("whole", "unprotected", "no-eviction", "no-consolidation", "one-atom", "no-tree", "fixed-gain", "strict"),
    ],
    "first15": [*HIMALAYAS, "loreft", "olora", "ia3", "lora", *BOUNDS, "himalaya-seed1"],
    "last15": ["himalaya", "lora-ewc"],
    "first10": [
        *(*HIMALAYAS, "himalaya-slow", "strict", "lilac", "loreft", "olora", "ia3", "lora-ewc", "lora", *BOUNDS),
        *("himalaya-seed1", "lora-ewc-seed1"),
    ],
    SECOND_BACKBONE: ["himalaya-24atoms", "himalaya", "loreft-ewc", "loreft-a-task"],
    "capacity": ["source-atoms", "source-atoms-seed1"],
    THREE_KINDS: ["himalaya-24atoms-seed1", "himalaya-seed0", "lilac-seed0"],
    SIX_TASKS: [
        *("himalaya-24atoms", "himalaya", "lilac", "coltas", "glodis", "loreft", "olora", "lora-ewc", "lora"),
        *("loreft-a-task", "lora-replay", "lora-joint", "frozen"),
    ],
    HUNDRED: ["himalaya-seed0"],
}
HEADLINE = "headline"  # the table of the README
HEADLINE_RUNS = (
    *(OWN, f"{OWN}-seed1", TWELVE, f"{TWELVE}-seed1"),
    *("loreft-independent-package25", "loreft-independent-package25-seed1"),
    *("loreft-package25", "lora-ewc-package25", "lora-ewc-package25-seed1", "lora-package25"),
)
POSITIONS, FRESH = "positions", "lora-independent"  # a fresh LoRA for each task
AGAINST_FRESH = ("HIMALAYA", "One LoReFT r=1 a task")
HEADLINE_METRICS = ("retained_accuracy_auc", "learning_accuracy", "forgetting", "stored_bytes", "trainable_parameters")
BLOCK = 5  # positions in the stream that are averaged
LLAMA, SOURCE = "llama-2-7b", "proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
SEARCHES = RESULTS / "learning_rates"  # trials.json of each search, named after its run
END = "<!-- end -->"


def start(section: str) -> str:
    """The line above a section's tables."""
    return f"<!-- generated: {section} -->\n"


def page(section: str) -> Path:
    """The page that a section stands in."""
    return README if section == HEADLINE else PAGE


def written(section: str) -> str:
    """A section as it stands in its page."""
    return page(section).read_text(encoding="utf-8").split(start(section))[1].split(END)[0]


def finished(section: str) -> list[RunRecord]:
    """The runs of a section that have results."""
    names = [name for name in SECTIONS[section] if (RESULTS / section / name / "metrics.json").is_file()]
    return read_comparable_runs(RESULTS / section, names)


def generated(section: str) -> str:
    """A section as the committed runs have it."""
    return MARKED[section]()


def main_table() -> str:
    """The first table over 25 tasks, without its legend (the page has it) and times (they do not compare)."""
    rows = [line.strip("| ").split(" | ") for line in in_page(parts(MAIN)[0].split("\n\n")[0]).splitlines()]
    kept = [place for place, head in enumerate(rows[0]) if not head.startswith(("Retention", "Training time"))]
    return "".join(f"| {' | '.join(row[place] for place in kept)} |\n" for row in rows)


def titled(title: str) -> str:
    """The table of the runs over 25 tasks that has this title."""
    (part,) = (part for part in parts(MAIN) if part.split("\n", 1)[0] == title)
    return in_page(part.split("\n\n", 2)[1], WEAK if title == PAIRED else ()) + "\n"


def in_page(table: str, but: tuple[str, ...] = ()) -> str:
    """A table without the variants of version 0.1, and perhaps others, which the page of all tables has."""
    return "\n".join(line for line in table.splitlines() if not line.startswith((*VARIANTS, *but)))


def tables_page() -> str:
    """The page of all tables: every comparison of committed runs, whole."""
    pieces = ["# All result tables", "", ABOUT_THE_TABLES, "", "## Learning rates", "", searches()]
    for section, title in TITLES.items():
        first, *others = parts(section)
        pieces += [f"## {title}", "", f"Runs: `benchmarks/results/{section}`.", "", first, ""]
        pieces += [f"### {part}\n" for part in others]
    return "\n".join(pieces)


@cache
def parts(section: str) -> list[str]:
    """The comparison of a section's runs: its first table, then the others with their titles."""
    comparison = compare(finished(section))
    more = [expected_table(expected_results(comparison, elsewhere()))] if section == MAIN else []
    below_the_title = document(comparison, [*comparison_tables(comparison), *more]).split("\n", 1)[1]
    if section in IN_SHORT:
        below_the_title = below_the_title.split("\n## Task by task")[0]
    return [part.strip() for part in below_the_title.split("\n## ")]


def elsewhere() -> dict[str, Comparison]:
    """The comparisons of other runs that an expected result is about."""
    return {section: compare(finished(section)) for section in (THREE_KINDS, SIX_TASKS)}


def headline() -> str:
    """What matters first over 25 tasks, a line per method, over its seeds."""
    return in_short([f"{MAIN}/{name}" for name in HEADLINE_RUNS])


def in_short(names: Sequence[str]) -> str:
    """The first few metrics of runs ``SECTION/RUN``, a line per method, over its seeds."""
    metrics = [metric for metric in METRICS if metric.key in HEADLINE_METRICS]
    lines = [
        f"| method | {' | '.join(f'{metric.title}{ARROWS[metric.better]}' for metric in metrics)} |",
        f"|---|{'---|' * len(metrics)}",
    ]
    there = [name for name in names if (RESULTS / name / "metrics.json").is_file()]
    for method in group_by_method(read_comparable_runs(RESULTS, there)):
        cells = [over_seeds([run.metrics[metric.key] for run in method.runs], metric.kind) for metric in metrics]
        lines.append(f"| {method.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def over_seeds(values: Sequence[float], kind: Kind) -> str:
    """The mean of a number over seeds, and its deviation if there are several."""
    found = spread(values)
    return f"{format_value(found.mean, kind)} {format_deviation(found, kind)}".strip()


def three_kinds() -> str:
    """Methods on three tasks of different kinds: how each task scores at the end."""
    methods = group_by_method(finished(THREE_KINDS))
    tasks = [f"{task['name']} ({task['metric']})" for task in methods[0].first.metrics["tasks"]]
    lines = [
        f"| method | seed | {' | '.join(tasks)} | learning accuracy | forgetting |",
        f"|---|{'---|' * (len(tasks) + 3)}",
    ]
    for method in methods:
        columns = [*zip(*([cell["score"] for cell in run.final] for run in method.runs), strict=True)]
        columns += [tuple(method.values(key)) for key in ("learning_accuracy", "forgetting")]
        cells = [over_seeds(values, "score") for values in columns]
        seeds = ", ".join(map(str, method.seeds))
        lines.append(f"| {method.label} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def positions() -> str:
    """How much better or worse tasks are learnt than by a fresh LoRA of their own, by their place in the stream."""
    fresh = [cell["score"] for cell in read_run(RESULTS / "package25" / FRESH).after_learning]
    starts = range(0, len(fresh), BLOCK)
    lines = [
        f"| method | {' | '.join(f'tasks {start + 1}–{start + BLOCK}' for start in starts)} | all |",
        f"|---|{'---|' * (len(starts) + 1)}",
    ]
    for method in group_by_method(finished(MAIN)):
        if method.label not in AGAINST_FRESH:
            continue
        gains = [cell["score"] - alone for cell, alone in zip(method.after_learning, fresh, strict=True)]
        means = [*(fmean(gains[start : start + BLOCK]) for start in starts), fmean(gains)]
        cells = " | ".join(format_value(mean, "signed") for mean in means)
        lines.append(f"| {method.label} | {cells} |")
    return "\n".join(lines) + "\n"


def hundred() -> str:
    """What is learnt, kept and recognised in each quarter of a hundred tasks."""
    (run,) = finished(HUNDRED)
    scored = run.scored_items()
    assert scored is not None
    (draws,) = resampled([scored], np.random.default_rng(0))
    lines = [
        "| tasks | frozen | right after learning | minus tasks 1–25 | forgotten at most | found by the prompt "
        "| score without the name | training of a task |",
        f"|---|{'---|' * 7}",
    ]
    learnt, first = diagonal(lower_triangle(run.scores)), slice(QUARTER)
    for begin in range(0, len(run.tasks), QUARTER):
        of, tasks = slice(begin, begin + QUARTER), run.metrics["tasks"][begin : begin + QUARTER]
        gain = float(learnt[of].mean() - learnt[first].mean())
        low, high = percentile_interval((diagonal(draws)[of].mean(0) - diagonal(draws)[first].mean(0)), gain)
        change = f"{format_value(gain, 'signed')} [{format_value(low, 'signed')}, {format_value(high, 'signed')}]"
        scores = [fmean(task[key]["score"] for task in tasks) for key in ("before", "unlabelled")]
        frozen, unlabelled = (format_value(score, "score") for score in scores)
        lost = max(task["after_learning"]["score"] - task["final"]["score"] for task in tasks)
        found = fmean(task["unlabelled"]["recognised"] for task in tasks)
        seconds = fmean(end["train_seconds"] for end in run.task_ends[of])
        cells = [f"{begin + 1}–{begin + QUARTER}", frozen, format_value(float(learnt[of].mean()), "score")]
        cells += [change if begin else "", format_value(lost, "score"), f"{100 * found:.1f} %", unlabelled]
        lines.append(f"| {' | '.join([*cells, format_value(seconds, 'seconds')])} |")
    return "\n".join(lines) + "\n"


def at_llama_2() -> str:
    """What the source claims of costs at Llama-2-7B's shape: counted, and measured on one layer."""
    run = compose_run([f"run={SOURCE}"]).run
    budget, work = count_budget(run), count_work(run)
    assert work.overhead is not None
    assert work.element_overhead is not None
    assert budget.released is not None
    assert budget.router is not None
    stored, released = sum(budget.stored.values()) / BYTES_PER_MB, sum(budget.released.values()) / BYTES_PER_MB
    operations = work.overhead + work.element_overhead
    layer = read_json(RESULTS / "latency" / "llama-2-7b_layer.json")
    decode = {
        entry["precision"]: entry["graphs"]["adapted"]["ratio"] - 1
        for entry in layer["measurements"]
        if entry["phase"] == "decode"
    }
    latency = ", ".join(f"{100 * overhead:+.1f} % ({precision})" for precision, overhead in decode.items())
    counted = "counted by `himalaya budget`"
    one_layer = f"HIMALAYA on one layer, one token, one thread of {layer['device']['cpu']}, ONNX Runtime, and no Pi 4"
    rows = [
        ("2.3 MB of extra storage", f"{stored:.2f} MB to learn further", stored <= 2.3, counted),
        ("the release file: less than 1 MB", f"{released:.2f} MB", released < 1, counted),
        ("router of 45 000 parameters", f"{budget.router:,}", budget.router <= 45_000, counted),
        ("less than 4 % of extra FLOPs", f"{100 * operations:.2f} %", operations < 0.04, f"{counted}, 128 tokens"),
        ("7 % of latency on a Raspberry Pi 4", latency, None, one_layer),
    ]
    verdicts = {True: "yes", False: "**no**", None: "not tested"}
    lines = ["| expected | here | within | how |", "|---|---|---|---|"]
    lines += [f"| {claim} | {here} | {verdicts[within]} | {how} |" for claim, here, within, how in rows]
    return "\n".join(lines) + "\n"


def unknown_prompts() -> str:
    """How often learnt tasks keep their prompts, and how often the others' prompts get the frozen model."""
    rows = read_json(RESULTS / "unknown_prompts.json")["rows"]
    lines = [
        "| templates | learnt tasks | their prompts not given to the frozen model | answered as their own task "
        "| unknown prompts given to the frozen model | those of another kind |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["learnt"] != 2 and row["prompts"] == max(one["prompts"] for one in rows):
            keys = ("own_kept", "right_kept", "foreign_fall_back", "strange_fall_back")
            shares = " | ".join(f"{100 * row['test'][key]:.1f} %" if key in row["test"] else "" for key in keys)
            templates = "each task has its own" if row["templates"] == "own" else row["templates"]
            lines.append(f"| {templates} | {row['learnt']} | {shares} |")
    return "\n".join(lines) + "\n"


def many_tasks() -> str:
    """What stays and what grows from the smallest number of tasks to the largest."""
    measured = read_json(MANY_TASKS) if MANY_TASKS.is_file() else {}
    settings = [one for part, one in measured.items() if part != "room" and one is not None]
    if not settings:
        return NOT_YET
    lines = [
        "| d | layers | atoms a task | tasks | changed since learnt | found by the prompt "
        "| taken for another | `set_task` and pass, ms "
        "| `infer_task` | end of a task: tree | scan | save | load |",
        f"|---|{'---|' * 12}",
    ]
    for setting in settings:
        for row in (setting["counts"][0], setting["counts"][-1]):
            changed = row["changed"] + row["adapter_changed"] + row["release_changed"]
            times = [
                f"{row['milliseconds'][name]:.3g}"
                for name in ("set_task and pass", "infer_task", "end, tree", "end, scan", "save", "load")
            ]
            facts = [setting["width"], setting["layers"], setting["atoms"], f"{row['tasks']:,}", changed]
            shares = [f"{100 * row[key]:.1f} %" for key in ("recognised", "mistaken")]
            cells = [*map(str, facts), *shares, *times]
            lines.append(f"| {' | '.join(cells)} |")
    machines = sorted(
        {f"{one['rounds']} rounds, one thread of {one['cpu']}, torch {one['torch']}" for one in settings}
    )
    told = f"Times are medians of {'; '.join(machines)}, in milliseconds."
    return "\n".join([*lines, "", told]) + "\n"


def room() -> str:
    """How many tasks fit into the original plan's 2.5 MB."""
    measured = read_json(MANY_TASKS) if MANY_TASKS.is_file() else {}
    if not measured.get("room"):
        return NOT_YET
    lines = [
        "| atoms a task | bytes a task | tasks in an adapter of 2.5 MB | in a release |",
        "|---|---|---|---|",
    ]
    for row in measured["room"]:
        adapter, release = row["adapter"], row["release"]
        lines.append(
            f"| {row['atoms']} | {adapter['bytes_a_task']:,} | {adapter['tasks']:,} ({adapter['file_bytes']:,} bytes) "
            f"| {release['tasks']:,} ({release['file_bytes']:,} bytes) |"
        )
    return "\n".join(lines) + "\n"


def source_atoms() -> str:
    """What the original plan's numbers of atoms cost: fewer atoms a task, and evictions from the sixth task on."""
    table = in_short([FEW_ATOMS, f"{FEW_ATOMS}-seed1", f"{MAIN}/{TWELVE}", f"{MAIN}/{TWELVE}-seed1"])
    run = read_run(RESULTS / FEW_ATOMS)
    survives = [event["survives"] for event in run.events if event["event"] == "eviction"]
    changes = [now["score"] - then["score"] for now, then in zip(run.final, run.after_learning, strict=True)]
    gained = [now["score"] - before["score"] for now, before in zip(run.final, run.before, strict=True)]
    found = (
        f"Seed 0: {len(survives)} evictions; of an evicted atom {100 * fmean(survives):.0f} % survives on average in "
        f"the Fisher metric. From right after learning to the end {sum(one < -0.05 for one in changes)} of "
        f"{len(changes)} tasks lose more than 0.05, the worst {-min(changes):.2f}. At the end "
        f"{sum(one > 0.05 for one in gained)} tasks are more than 0.05 above the frozen model, "
        f"{sum(one < -0.05 for one in gained)} more than 0.05 below it."
    )
    return f"{table}\n{found}\n"


def searches() -> str:
    """What every trial of the searches reached, the best in bold."""
    lines = ["| method | learning rate: retained-accuracy AUC on validation items |", "|---|---|"]
    for path in sorted(SEARCHES.glob("*.json")):
        search = read_json(path)
        trials = sorted(search["trials"], key=lambda trial: trial["parameters"]["learning_rate"])
        words = [f"{trial['parameters']['learning_rate']:g}: {trial['value']:.3f}" for trial in trials]
        best = [
            f"**{word}**" if t["number"] == search["best"] else word for t, word in zip(trials, words, strict=True)
        ]
        lines.append(f"| {search['method_name']} | {', '.join(best)} |")
    return "\n".join(lines) + "\n"


# Section between markers -> what makes it; and folders of runs -> their titles on the page of tables.
MARKED: dict[str, Callable[[], str]] = {
    HEADLINE: headline,
    MAIN: main_table,
    "paired": lambda: titled(PAIRED),
    "expected": lambda: titled(EXPECTED),
    POSITIONS: positions,
    "unknown": unknown_prompts,
    "many-tasks": many_tasks,
    "room": room,
    "bits": bits_results.table,
    "source-atoms": source_atoms,
    "three-kinds": three_kinds,
    SECOND_BACKBONE: lambda: in_short([f"{SECOND_BACKBONE}/{name}" for name in SECTIONS[SECOND_BACKBONE]]),
    HUNDRED: hundred,
    "six-tasks": lambda: in_short([f"{SIX_TASKS}/{name}" for name in SECTIONS[SIX_TASKS]]),
    LLAMA: at_llama_2,
}
TITLES = {
    MAIN: "Twenty-five tasks",
    "reversed25": "Twenty-five tasks, from the last to the first",
    "first15": "The first fifteen tasks, on an H200",
    "last15": "The last fifteen tasks in reverse, on an H200",
    "first10": "The first ten tasks, on an H200",
    ABLATIONS: "Ablations of version 0.1: six tasks, eight elastic slots",
    SECOND_BACKBONE: "The first ten tasks on Gemma 3 270M",
    "capacity": "Twenty-five tasks with the original plan's 24 + 16 atoms",
    THREE_KINDS: "Three tasks of different kinds",
    SIX_TASKS: "All methods on six tasks",
    HUNDRED: "A hundred tasks",
    "demo": "The demo: six tasks",
}
ABOUT_THE_TABLES = """\
Everything that the committed runs have measured, on smollm2-135m where nothing else is said.
[Results](results.md) says what follows from it. *HIMALAYA 0.1* is the method of version 0.1, now `HIMALAYA_STRICT`
with other options. A method without a number of seeds ran once. Times of runs that shared a machine do not compare."""


# Name of the picture -> the runs over 25 tasks that it shows, and how.
Draw = Callable[[Sequence[MethodGroup]], Figure]
LEARNERS = [name for name in SECTIONS[MAIN] if name != "frozen"]
PICTURES: dict[str, tuple[Sequence[str], Draw]] = {
    "retained_accuracy": (HEADLINE_RUNS, score_figures.retained_accuracy),
    "learning_by_position": (LEARNERS, score_figures.learning_by_position),
}


def shown(picture: str) -> str:
    """A hash of what a picture shows, which its file carries: pixels differ from one matplotlib to the next."""
    runs = read_comparable_runs(RESULTS / MAIN, PICTURES[picture][0])
    scores = [(run.metrics["method_name"], run.before, run.rows) for run in runs]
    return hashlib.sha256(json.dumps(scores).encode()).hexdigest()


def draw(picture: str) -> None:
    """Write a picture."""
    names, figure = PICTURES[picture]
    path = DOCS / "images" / f"{picture}.png"
    methods = group_by_method(read_comparable_runs(RESULTS / MAIN, names))
    paper.draw(figure(methods)).savefig(path, metadata={"Description": shown(picture)})


if __name__ == "__main__":
    for name in MARKED:
        before, rest = page(name).read_text(encoding="utf-8").split(start(name))
        page(name).write_text(before + start(name) + generated(name) + END + rest.split(END, 1)[1], encoding="utf-8")
    for name in PICTURES:
        draw(name)
    bits_results.draw()
