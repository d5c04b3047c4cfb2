"""``himalaya learn``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from himalaya_adapter.commands import Backbone, templates_of
from himalaya_adapter.errors import HimalayaError

CONTINUES = True


def command(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder; made if it is not there.")],
    data: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .csv, .tsv or .parquet file, a folder of `datasets`, or owner/name of the hub."
        ),
    ],
    task: Annotated[str, typer.Option(help="The task's name; a known one is learnt further.")],
    backbone: Backbone = None,
    prompt: Annotated[str | None, typer.Option(help=r"Template of the question: 'Ticket: {text}\nTeam:'.")] = None,
    target: Annotated[str | None, typer.Option(help="Template of the answer: '{team}'.")] = None,
    split: Annotated[str, typer.Option(help="Which split of a data set.")] = "train",
    metric: Annotated[str | None, typer.Option(help="accuracy, exact_match, chrf, …; by default as it looks.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows that give no item.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the items; default: about 100 steps.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Most optimiser steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items of a step.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of what is held out of a new task, and of the order.")
    ] = 0,
    save_steps: Annotated[
        int, typer.Option(min=1, help="Steps between two points that a killed process goes on at.")
    ] = 25,
    budget_mb: Annotated[float | None, typer.Option(help="Largest file of a new adapter; default: 2.5.")] = None,
    placement: Annotated[
        Literal["residual_stream", "weights"] | None,
        typer.Option(help="Of a new adapter; 'weights' can be exported as plain LoRAs. Default: residual_stream."),
    ] = None,
    atoms_per_task: Annotated[
        int | None, typer.Option(min=3, help="Of a new adapter; fewer leave room for more tasks. Default: 24.")
    ] = None,
    check: Annotated[list[str] | None, typer.Option(metavar="TASK=FILE", help="See what this task loses.")] = None,
    keep_check: Annotated[bool, typer.Option("--keep-check", help="Keep the held-out items for that.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Another task has almost this name, and that is meant.")] = False,
) -> None:
    """Learn a task from your own file; what the adapter has learnt before stays as it is."""
    import time

    from himalaya_adapter.learning.learn import LearnOptions, learn

    started = time.perf_counter()
    checks: dict[str, str] = {}
    for one in check or []:
        name, _, file = one.partition("=")
        if not file:
            raise HimalayaError(f"--check {name}: expected TASK=FILE")
        if name in checks:
            raise HimalayaError(f"--check {name} is given twice: one file for each task")
        checks[name] = file
    options = LearnOptions(
        backbone=backbone,
        budget_mb=budget_mb,
        placement=placement,
        atoms_per_task=atoms_per_task,
        new=new,
        templates=templates_of(prompt, target),
        split=split,
        metric=metric,
        skip_bad_rows=skip_bad_rows,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        save_steps=save_steps,
        checks=checks,
        keep_check=keep_check,
    )
    learnt = learn(adapter, data, task, options)
    record = learnt.record
    for reason, count in record["left_out"].items():
        print(f"left out: {count} rows, {reason}")
    seconds, memory = time.perf_counter() - started, record["peak_memory_bytes"] / 1e9
    print(
        f"{learnt.task.task}: {record['steps']} steps in {record['seconds']:.0f} s; {seconds:.0f} s in all, at most "
        f"{memory:.1f} GB of memory"
    )
    change = learnt.task
    print(f"{change.task}: {change.metric} {change.before:.2f} -> {change.after:.2f} on {change.items} held-out items")
    for change in learnt.earlier:
        lost = change.before - change.after
        what = "nothing lost" if lost == 0 else f"{'lost' if lost > 0 else 'gained'} {abs(lost):.2f}"
        print(f"{change.task}: {change.metric} {change.before:.2f} -> {change.after:.2f}: {what}")
    print(f"{adapter}: {learnt.bytes / 1e6:.2f} MB, room for about {learnt.room} more tasks of this size")
