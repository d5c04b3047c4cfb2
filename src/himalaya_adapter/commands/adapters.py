"""Adapters: learn one task after another, ask, export, measure."""

import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from himalaya_adapter.commands import Adapter, AsTask, Backbone, Prompt, Split, Target, templates_of, typed
from himalaya_adapter.errors import HimalayaError

if TYPE_CHECKING:
    from himalaya_adapter.learning.learn import Learnt

LAYER = "NousResearch/Llama-2-7b-hf"
OF_CHAT = r"/task NAME switches (auto: as each prompt looks), /tasks lists, /quit ends; \n in a line is a line break"
OF_FORMAT = {"bundle": ("precision",), "lora": (), "onnx": ("opset", "graph")}  # options that only one format has
app = typer.Typer()


@app.command()
def learn(
    ctx: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder; made if it is not there.")],
    data: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .json, .csv, .tsv or .parquet file (also .gz), a folder of them, or a data set: its "
            "folder or its owner/name on the hub."
        ),
    ],
    task: Annotated[str, typer.Option(help="The task's name; a known one is learnt further.")],
    backbone: Backbone = None,
    prompt: Prompt = None,
    target: Target = None,
    split: Split = "train",
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
    from himalaya_adapter.learning.learn import LearnOptions, learn

    started = time.perf_counter()
    given = check or []
    checks = {name: file for name, _, file in (one.partition("=") for one in given)}
    if not all(checks.values()) or len(checks) < len(given):
        raise HimalayaError(f"--check {' --check '.join(given)}: expected TASK=FILE, each task once")
    # All others are typed under the names of their fields.
    named = {field.name: ctx.params[field.name] for field in fields(LearnOptions) if field.name in ctx.params}
    options = LearnOptions(templates=templates_of(prompt, target), checks=checks, **named)
    learn(adapter, data, task, options, lambda learnt: _print_learnt(adapter, learnt, started))


def _print_learnt(adapter: Path, learnt: "Learnt", started: float) -> None:
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
    room = f"room for about {learnt.room} more tasks of this size"
    print(f"{adapter}: {learnt.bytes / 1e6:.2f} MB, {room}", flush=True)


@app.command()
def tasks(
    adapter: Annotated[Path, typer.Argument(help="An adapter's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it for a program.")] = False,
) -> None:
    """Say what an adapter knows, and how much room is left."""
    from rich.console import Console
    from rich.table import Table

    from himalaya_adapter.learning.adapter_store import AdapterStore, room

    store = AdapterStore(adapter)
    known, left = store.adapter.tasks.known(), room(store.adapter)
    records = {name: store.record(name) for name in known}
    backbone = store.facts["backbone"].get("name") or store.adapter.config.base_model_name_or_path
    if as_json:
        told = {"adapter": str(adapter), "backbone": backbone, "bytes": store.bytes, "room": left, "tasks": records}
        print(json.dumps(told, ensure_ascii=False, indent=2))
        return
    what = f"knows {len(known)} task{'s' * (len(known) != 1)}: {', '.join(known)}" if known else "knows no task yet"
    print(f"{adapter} {what}.")
    print(f"{store.bytes / 1e6:.2f} MB on {backbone}; room for about {left} more tasks of this size.")
    # Records of earlier versions have the score before alone.
    frozen = {name: told.get("score_frozen", told.get("score_before")) for name, told in records.items()}
    weak = [name for name, score in frozen.items() if score is not None and records[name]["score"] <= score]
    if weak:
        print(f"On held-out items it is not better than the frozen model at {', '.join(weak)}.")
    if known:
        print("It knows prompts in the form of its tasks and nothing else.")
        print("Without --task, a prompt that looks like none of them gets the frozen model.")
    table = Table("task", "items learnt", "metric", "frozen", "learnt", "scored on", "question -> answer")
    for name, record in records.items():
        if not record:
            table.add_row(name, *[""] * 5, "learnt in another way than by himalaya learn")
            continue
        form = record["form"]
        asked = "a conversation" if form["chat"] else f"{form['prompt']!r} -> {form['target']!r}"
        scores = ("" if score is None else f"{score:.2f}" for score in (frozen[name], record["score"]))
        table.add_row(name, str(record["items"]), record["metric"], *scores, str(record["held_out"]), asked)
    if known:
        Console(markup=False, emoji=False).print(table)  # [x] and :x: in a prompt are its own


@app.command()
def forget(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    task: Annotated[str, typer.Argument(help="The task to remove.")],
) -> None:
    """Remove a task; all others answer bit for bit as before."""
    from himalaya_adapter.learning.adapter_store import AdapterStore, room

    store = AdapterStore(adapter)
    with store.locked():
        store.forget(task)
    known = ", ".join(store.adapter.tasks.known()) or "nothing"
    print(f"{adapter} has forgotten {task}; it knows {known}, with room for about {room(store.adapter)} more tasks")


@app.command()
def generate(
    adapter: Adapter,
    prompt: Annotated[str, typer.Argument(help="The text; '-' reads standard input.")],
    task: AsTask = "auto",
    backbone: Backbone = None,
    max_new_tokens: int = 64,
) -> None:
    """Answer a prompt, word by word, in the form that the task was learnt in."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.deploy.answering import AUTO, check_request
    from himalaya_adapter.learning.asking import Conversation

    text = typed(sys.stdin.read) if prompt == "-" else prompt
    check_request(text, max_new_tokens)  # before a model is loaded for nothing
    loaded = load_adapter(adapter, task=None if task == AUTO else task, backbone=backbone)
    Conversation(loaded, task).ask(text, max_new_tokens)


@app.command()
def chat(
    adapter: Adapter,
    task: AsTask = "auto",
    backbone: Backbone = None,
    max_new_tokens: int = 128,
) -> None:
    """Answer line after line; the model is loaded once."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.deploy.answering import AUTO
    from himalaya_adapter.learning.asking import Conversation

    loaded = load_adapter(adapter, task=None if task == AUTO else task, backbone=backbone)
    conversation = Conversation(loaded, task)
    print(OF_CHAT, file=sys.stderr)
    while True:
        print(f"{conversation.task}> ", end="", file=sys.stderr, flush=True)
        line = typed(sys.stdin.readline)
        word, _, rest = line.strip().partition(" ")
        if not line or word == "/quit":
            return
        try:
            if word == "/tasks":
                print(", ".join(loaded.tasks))
            elif word == "/task":
                conversation = Conversation(loaded, rest.strip())
            elif word:
                conversation.ask(line.strip().replace("\\n", "\n"), max_new_tokens)
        except HimalayaError as error:
            print(error, file=sys.stderr)


@app.command()
def evaluate(
    adapter: Adapter,
    data: Annotated[str, typer.Argument(help="Questions with their answers: as for himalaya learn.")],
    task: Annotated[str, typer.Option(help="The task to answer as.")],
    backbone: Backbone = None,
    prompt: Prompt = None,
    target: Target = None,
    split: Split = "train",
    metric: Annotated[str | None, typer.Option(help="By default the task's own.")] = None,
) -> None:
    """Score a task on a file."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.evaluation.batching import context_of
    from himalaya_adapter.learning.adapter_store import AdapterStore
    from himalaya_adapter.learning.asking import score
    from himalaya_adapter.learning.data import read_data
    from himalaya_adapter.learning.rows import read_rows

    rows, templates = read_rows(data, split), templates_of(prompt, target)
    loaded = load_adapter(adapter, task=task, backbone=backbone)
    known, context = AdapterStore(loaded.folder).form(task), context_of(loaded.model)
    own = read_data(
        rows, data, loaded.tokenizer, context, known=known, templates=templates, metric=metric, new_labels=False
    )
    found = score(loaded.model, loaded.tokenizer, own.scored(task, own.items))
    print(f"{task}: {found.metric} {found.score:.3f} ({found.low:.3f} to {found.high:.3f}) on {found.n} items")


@app.command()
def serve(
    adapter: Adapter,
    name: Annotated[str | None, typer.Option(help="What requests call it; default: the folder's name.")] = None,
    backbone: Backbone = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
) -> None:
    """Answer OpenAI-compatible requests: model NAME:TASK, or NAME to leave the task to the prompt."""
    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.learning.serving import listen, serve

    with listen(host, port) as at:  # before a model is loaded for nothing
        loaded = load_adapter(adapter, backbone=backbone)
        base = name or Path(adapter).resolve().name
        models = ", ".join([base, *(f"{base}:{task}" for task in loaded.tasks)])
        print(
            f"http://{host}:{at.getsockname()[1]}/v1 answers as {models}; who reaches this address can ask", flush=True
        )
        serve(loaded, base, at)


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, its adapter or release folder, or a copy of one.")],
    form: Annotated[Literal["bundle", "lora", "onnx"], typer.Option("--format", help="What to write.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    task: Annotated[list[str] | None, typer.Option(help="A task to export (repeatable; default: all).")] = None,
    backbone: Backbone = None,
    opset: Annotated[
        int | None, typer.Option(min=18, max=23, help="ONNX opset of the graphs (onnx; default: 18).")
    ] = None,
    graph: Annotated[Literal["adapter", "model"] | None, typer.Option(help="Only this graph (onnx).")] = None,
    precision: Annotated[
        Literal["fp32", "int8", "int4"] | None, typer.Option(help="Of the base's weights (bundle; default: fp32).")
    ] = None,
) -> None:
    """Write a run's adapter as ONNX graphs, a bundle or plain LoRAs."""
    given = {"opset": opset, "graph": graph, "precision": precision}
    options: dict[str, Any] = {option: value for option, value in given.items() if value}
    for option in options:
        if option not in OF_FORMAT[form]:
            raise HimalayaError(f"--{option} says nothing to --format {form}: leave it out")
    options |= {"tasks": task or [], "backbone": backbone}
    if form == "lora":
        from himalaya_adapter.deploy.lora_export import export_lora

        print(*export_lora(adapter, output, **options), sep="\n")
    elif form == "bundle":
        from himalaya_adapter.deploy.bundle.writer import export_bundle

        print(export_bundle(adapter, output, **options))
    else:
        from himalaya_adapter.deploy.onnx.export import export_onnx

        for name, outputs in export_onnx(adapter, output, **options).items():
            largest = max(entry["relative"] for entry in outputs.values())
            print(f"{name}: largest relative difference from PyTorch {largest:.1e}")
        print(output)


@app.command()
def latency(
    adapter: Annotated[Path | None, typer.Argument(help="A run's folder: its whole backbone is measured.")] = None,
    backbone: Backbone = None,
    shape: Annotated[
        str | None, typer.Option(metavar="BACKBONE", help="Measure one decoder layer of this shape (default).")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the base's weights, with commas between several: fp32,int8,int4.")
    ] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Default: one for each CPU.")] = None,
    seconds: Annotated[float, typer.Option(help="For each phase and precision.")] = 20.0,
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE.json", help="Write all that was measured.")
    ] = None,
) -> None:
    """The adapter's overhead in ONNX Runtime on this machine."""
    from himalaya_adapter.deploy.bundle.runner.latency import told
    from himalaya_adapter.deploy.latency import measure_latency
    from himalaya_adapter.storage import write_json

    if adapter is not None and shape is not None:
        raise HimalayaError("give either the folder of an ADAPTER (its whole backbone) or --shape (one layer)")
    if adapter is None and backbone is not None:
        raise HimalayaError("--backbone belongs to an ADAPTER; a layer's shape is named by --shape")
    result = measure_latency(adapter, shape or LAYER, precision.split(","), threads, seconds, backbone)
    print(result["subject"])
    for line in told(result["device"], result["measurements"]):
        print(line)
    if output is not None:
        write_json(output, result)
        print(output)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the files of the tasks, the adapter and the report go.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a task.")] = None,
    items: Annotated[int | None, typer.Option(min=8, help="Items of a task.")] = None,
) -> None:
    """Learn three tasks one after another with HIMALAYA and with one LoRA, and see what each still knows."""
    from himalaya_adapter.learning.demo import ITEMS, STEPS, print_result, run_demo
    from himalaya_adapter.report.demo_page import write_demo_report

    result = run_demo(folder, steps=steps or STEPS, items=items or ITEMS)
    print_result(result)
    print(f"The report is here: {write_demo_report(result, folder)}")
