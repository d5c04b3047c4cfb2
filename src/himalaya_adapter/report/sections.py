"""What a report shows, in which order, and the sentence that says how to read each figure."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from himalaya_adapter.report import figures, growth, heat_maps, paired_figures, resource_figures
from himalaya_adapter.report.comparison import Comparison
from himalaya_adapter.report.method_groups import alone
from himalaya_adapter.report.metric_table import MANY_METHODS
from himalaya_adapter.report.run_folder import RunRecord


@dataclass(frozen=True)
class Section:
    """A figure with its title and how to read it; ``topic`` ends the names of its files, ``folded`` hides it first."""

    topic: str
    title: str
    reading: str
    figure: Figure
    folded: bool = False


RETAINED = (
    "Mean score over the tasks learnt so far; a line that stays high has learnt the new tasks and kept the old ones. "
    "The dashed line is the frozen model on the same tasks: it moves as the set of tasks grows. A thin line joins "
    "measured points across tasks after which not everything was scored."
)
WHISKERS = "Bands and whiskers are 95 % intervals over test items."
SEEDED_WHISKERS = (
    "Bands and whiskers are ± one standard deviation over seeds; of a method with a single seed, its 95 % interval "
    "over test items."
)
MATRIX = (
    "Read down a column: a task's score from when it was learnt (outlined) to the end; a column that fades is being "
    "forgotten. The top row is the frozen model. What is blank below the diagonal was not measured."
)
TASK_SCORES = (
    "Grey to pale is what training on the task gained; pale to full is what later tasks took away or gave back. "
    "Whiskers are 95 % intervals."
)
POSITION = (
    "Each task's score right after it was learnt, in the order of the stream, above the frozen model's score (grey): "
    "if the gap closes to the right, the adapter is running out of plasticity."
)
PANELS = "Grey dots are the other methods."
ATOMS = (
    "Left, atoms per token while each task was learnt: the bar is the gates' expectation, the dot what was used, the "
    "dashed line the budget. Right, the share of tokens that used each atom: a vertical stripe is an atom that tasks "
    "share, an isolated cell one that a single task uses."
)
BYTES = "Every byte the adapter stores after each task; equal bars mean that memory does not grow with the tasks."
ROOM = (
    "What later tasks can still take. Left, the directions off the span of past features, in which alone the router's "
    "head changes: at zero it can learn no more. Right, the atoms that no task owns: at zero a new task evicts one."
)
GROWTH = (
    "Each mark is an atom that was written. Inside a task an atom is added where the loss asks for a direction that "
    "no atom offers, or replaces the task's least useful one; a task that finds no free atom evicts one of an earlier "
    "task, and the share above it is what of its function other atoms reproduce."
)
NORMS = "The norm certificate: the largest norms seen so far must stay at or below the dashed bound."
TIME = (
    "Wall-clock time. After a task either all tasks so far are scored, which grows with the stream, or only the new "
    "one."
)
BY_METHOD = (
    "Filled: score at the end. Hollow: right after learning. A pale bar from hollow to filled, pointing left, is "
    "forgetting; the grey tick is the frozen model."
)
BY_METHOD_MAP = (
    "Left, every task's score after the last one. Right, what became of it since it was learnt: what is forgotten is "
    "negative (orange)."
)
DIFFERENCES = (
    "Paired differences on the same test items, with 95 % bootstrap intervals. Filled marks are significant: the "
    "p-value, corrected for all comparisons of the table (Holm), is at most 0.05. The intervals hold what other test "
    "items would change, not what other seeds would."
)
TASK_DIFFERENCES = (
    "Differences of the final scores, task by task: positive (violet) where the reference is better. Framed is what "
    "a sign-flip test, corrected over this whole table (Holm), finds significant at 0.05."
)
TOTAL_TIME = (
    "Wall-clock time of training and of all evaluations; comparable only for runs on the same, equally busy machine."
)


def run_sections(run: RunRecord) -> list[Section]:
    """The sections of one run's report; figures of what the method does not record are left out."""
    group = [alone(run)]
    drawn = [
        ("retained_accuracy", "Retained accuracy", f"{RETAINED} {WHISKERS}", figures.retained_accuracy(group)),
        ("accuracy_matrix", "Accuracy matrix", MATRIX, heat_maps.accuracy_matrix(alone(run))),
        ("task_scores", "Before, after learning, now", TASK_SCORES, figures.task_scores(run)),
        ("learning_by_position", "Learning by position in the stream", POSITION, figures.learning_by_position(group)),
        ("gates_and_atoms", "Gates and atoms", ATOMS, heat_maps.gates_and_atoms(run)),
        ("stored_bytes", "Stored bytes", BYTES, resource_figures.stored_bytes_by_part(run)),
        ("norms", "Norms", NORMS, resource_figures.norms(group)),
        ("growth", "Growth of the dictionary", GROWTH, growth.growth_timeline(run)),
        ("room_left", "Room left for later tasks", ROOM, growth.room_left(group)),
        ("time", "Time", TIME, resource_figures.seconds_per_task(run)),
    ]
    return [Section(topic, title, reading, figure) for topic, title, reading, figure in drawn if figure is not None]


def comparison_sections(comparison: Comparison) -> list[Section]:
    """The sections of a comparison: all methods in one figure each, then an accuracy matrix per method."""
    groups = comparison.groups
    many = len(groups) >= MANY_METHODS
    whiskers = SEEDED_WHISKERS if any(len(group.runs) > 1 for group in groups) else WHISKERS
    by_method = heat_maps.scores_by_method(groups) if many else figures.task_scores_by_method(groups)
    drawn = [
        (
            "retained_accuracy",
            "Retained accuracy",
            RETAINED if many else f"{RETAINED} {whiskers}",
            figures.retained_accuracy(groups),
        ),
        ("paired_differences", "Paired differences", DIFFERENCES, paired_figures.paired_differences(comparison)),
        ("task_scores", "Task by task", BY_METHOD_MAP if many else f"{BY_METHOD} {whiskers}", by_method),
        (
            "task_differences",
            "Paired differences, task by task",
            TASK_DIFFERENCES,
            heat_maps.task_differences(comparison),
        ),
        (
            "learning_by_position",
            "Learning by position in the stream",
            f"{POSITION} {PANELS if many else ''} {whiskers}",
            figures.learning_by_position(groups),
        ),
        ("stored_bytes", "Stored bytes", BYTES, resource_figures.stored_bytes_over_tasks(groups)),
        ("norms", "Norms", NORMS, resource_figures.norms(groups)),
        ("room_left", "Room left for later tasks", ROOM, growth.room_left(groups)),
        ("time", "Time", TOTAL_TIME, resource_figures.total_seconds(groups)),
    ]
    sections = [
        Section(topic, title, reading, figure) for topic, title, reading, figure in drawn if figure is not None
    ]
    for number, group in enumerate(groups, start=1):
        title, matrix = f"Accuracy matrix: {group.label}", heat_maps.accuracy_matrix(group)
        sections.append(Section(f"accuracy_matrix_{number}", title, MATRIX, matrix, folded=many))
    return sections
