"""What a report shows, in which order, and the sentence that says how to read each figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from himalaya_adapter.report import figures, growth, heat_maps, resource_figures
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.report.style import run_styles


@dataclass(frozen=True)
class Section:
    """A figure with its title and how to read it; ``topic`` ends the names of its files."""

    topic: str
    title: str
    reading: str
    figure: Figure


RETAINED = (
    "Mean score over the tasks learnt so far, with its 95 % interval; a line that stays high has learnt the new tasks "
    "and kept the old ones. The dashed line is the frozen model on the same tasks: it moves as the set of tasks "
    "grows. A thin line joins measured points across tasks after which not everything was scored."
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
BY_RUN = (
    "Filled: score at the end with its 95 % interval. Hollow: right after learning. A pale bar from hollow to filled, "
    "pointing left, is forgetting; the grey tick is the frozen model."
)
TOTAL_TIME = (
    "Wall-clock time of training and of all evaluations; comparable only for runs on the same, equally busy machine."
)


def run_sections(run: RunRecord) -> list[Section]:
    """The sections of one run's report; figures of what the method does not record are left out."""
    drawn = [
        ("retained_accuracy", "Retained accuracy", RETAINED, figures.retained_accuracy([run])),
        ("accuracy_matrix", "Accuracy matrix", MATRIX, heat_maps.accuracy_matrix(run)),
        ("task_scores", "Before, after learning, now", TASK_SCORES, figures.task_scores(run)),
        ("learning_by_position", "Learning by position in the stream", POSITION, figures.learning_by_position([run])),
        ("gates_and_atoms", "Gates and atoms", ATOMS, heat_maps.gates_and_atoms(run)),
        ("stored_bytes", "Stored bytes", BYTES, resource_figures.stored_bytes_by_part(run)),
        ("norms", "Norms", NORMS, resource_figures.norms([run])),
        ("growth", "Growth of the dictionary", GROWTH, growth.growth_timeline(run)),
        ("room_left", "Room left for later tasks", ROOM, growth.room_left([run])),
        ("time", "Time", TIME, resource_figures.seconds_per_task(run)),
    ]
    return [Section(topic, title, reading, figure) for topic, title, reading, figure in drawn if figure is not None]


def comparison_sections(runs: Sequence[RunRecord]) -> list[Section]:
    """The sections of a comparison: curves of all runs in one figure, then one accuracy matrix per run."""
    drawn = [
        ("retained_accuracy", "Retained accuracy", RETAINED, figures.retained_accuracy(runs)),
        ("task_scores", "Task by task", BY_RUN, figures.task_scores_by_run(runs)),
        ("learning_by_position", "Learning by position in the stream", POSITION, figures.learning_by_position(runs)),
        ("stored_bytes", "Stored bytes", BYTES, resource_figures.stored_bytes_over_tasks(runs)),
        ("norms", "Norms", NORMS, resource_figures.norms(runs)),
        ("room_left", "Room left for later tasks", ROOM, growth.room_left(runs)),
        ("time", "Time", TOTAL_TIME, resource_figures.total_seconds(runs)),
        *(
            (f"accuracy_matrix_{number}", f"Accuracy matrix: {look.label}", MATRIX, heat_maps.accuracy_matrix(run))
            for number, (run, look) in enumerate(zip(runs, run_styles(runs), strict=True), start=1)
        ),
    ]
    return [Section(topic, title, reading, figure) for topic, title, reading, figure in drawn if figure is not None]
