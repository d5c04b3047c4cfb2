"""``himalaya evaluate``."""

from typing import Annotated

import typer

from himalaya_adapter.commands import Backbone, templates_of


def command(
    adapter: Annotated[str, typer.Argument(help="An adapter's folder, a run's, or owner/name.")],
    data: Annotated[str, typer.Argument(help="Questions with their answers: as for himalaya learn.")],
    task: Annotated[str, typer.Option(help="The task to answer as.")],
    backbone: Backbone = None,
    prompt: Annotated[str | None, typer.Option(help="Template of the question.")] = None,
    target: Annotated[str | None, typer.Option(help="Template of the answer.")] = None,
    split: Annotated[str, typer.Option(help="Which split of a data set.")] = "train",
    metric: Annotated[str | None, typer.Option(help="By default the task's own.")] = None,
) -> None:
    """Score a task on a file."""
    from himalaya_adapter.learning.asking import score_file

    score = score_file(adapter, data, task, backbone, templates_of(prompt, target), split, metric)
    print(f"{task}: {score.metric} {score.score:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.n} items")
