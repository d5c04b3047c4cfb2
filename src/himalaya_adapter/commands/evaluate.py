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
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.evaluation.batching import context_of
    from himalaya_adapter.learning.adapter_store import AdapterStore
    from himalaya_adapter.learning.asking import score
    from himalaya_adapter.learning.data import read_data, read_rows

    rows, templates = read_rows(data, split), templates_of(prompt, target)
    loaded = load_adapter(adapter, task=task, backbone=backbone)
    known, context = AdapterStore(loaded.folder).form(task), context_of(loaded.model)
    own = read_data(
        rows, data, loaded.tokenizer, context, known=known, templates=templates, metric=metric, new_labels=False
    )
    found = score(loaded.model, loaded.tokenizer, own.task(task, own.items, own.items))
    print(f"{task}: {found.metric} {found.score:.3f} ({found.low:.3f} to {found.high:.3f}) on {found.n} items")
