"""What each command of ``himalaya`` does with what was typed.

Imports stand inside the commands: each loads only the floors that it needs.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from himalaya_adapter.errors import HimalayaError


def run(chosen: argparse.Namespace) -> None:
    """Learn a stream, and report."""
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.report import write_run_report
    from himalaya_adapter.training import run_stream

    launch = compose_run(chosen.overrides)
    folder = run_stream(launch.run, launch.results_dir, overwrite=launch.overwrite)
    if os.environ.get("RANK", "0") != "0":
        return  # one process of several: the first one reports
    if not (folder / "report.html").is_file():
        write_run_report(folder)
    print(folder / "report.html")


def sweep(chosen: argparse.Namespace) -> None:
    """Run many runs; those that fail are named at the end."""
    from himalaya_adapter.sweep import sweep

    failures = sweep(chosen.overrides)
    for failure in failures[:-1]:
        print(f"himalaya: {' '.join(failure.split())}", file=sys.stderr)
    if failures:
        raise HimalayaError(failures[-1])


def search(chosen: argparse.Namespace) -> None:
    """Search a run's hyper-parameters, and report."""
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.report import write_search_report
    from himalaya_adapter.search import run_search

    launch = compose_run(chosen.overrides)
    print(write_search_report(run_search(launch.run, launch.results_dir, overwrite=launch.overwrite)))


def budget(chosen: argparse.Namespace) -> None:
    """Show what a run's adapter costs, and whether that is within its budget."""
    from himalaya_adapter.budget import check_size, count_budget
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.experiments.validation import check_run
    from himalaya_adapter.report.budget_tables import budget_tables

    run = compose_run(chosen.overrides).run
    check_run(run)
    budget = count_budget(run)
    for table in budget_tables(run, budget):
        Console().print(table)
    if run.model.adapter.total_parameter_budget_mb is not None:
        check_size(budget.stored, run.model.adapter.total_parameter_budget_mb)


def compare(chosen: argparse.Namespace) -> None:
    """Compare finished runs."""
    from himalaya_adapter.report import write_comparison

    words = dict(word.split("=", 1) for word in chosen.overrides if "=" in word)
    if set(words) != {"results_dir", "run_ids"} or len(words) != len(chosen.overrides):
        raise HimalayaError('compare takes results_dir=FOLDER and run_ids=\'["a", "b"]\'')
    try:
        run_ids = json.loads(words["run_ids"])
    except json.JSONDecodeError:
        run_ids = None
    if not isinstance(run_ids, list) or not run_ids or not all(isinstance(one, str) for one in run_ids):
        raise HimalayaError(f'run_ids={words["run_ids"]} is not a JSON list of names such as \'["a", "b"]\'')
    results = Path(words["results_dir"])
    print(write_comparison(results, run_ids, results / "comparison"))


def data_list(chosen: argparse.Namespace) -> None:
    """List the tasks of a stream, or of all, and whether their archives are cached."""
    from himalaya_adapter.packages import archive_path
    from himalaya_adapter.streams import stream_names
    from himalaya_adapter.streams.catalogue import read_definition

    for name in [chosen.stream] if chosen.stream else stream_names():
        stream = read_definition(name)
        table = Table("task", "kind", "language", "metric", "what it asks", title=f"{name}: {stream.description}")
        for spec in stream.tasks:
            table.add_row(spec.name, spec.kind, spec.language, spec.metric, spec.description)
        console = Console()
        console.print(table)
        for archive in stream.used_archives().values():
            state = "cached" if archive_path(archive.requirement).is_file() else "not fetched"
            console.print(f"{archive.requirement} ({archive.licence}): {state}", highlight=False)


def data_fetch(chosen: argparse.Namespace) -> None:
    """Bring a stream's archives into the cache."""
    from himalaya_adapter.streams.catalogue import fetch_stream
    from himalaya_adapter.streams.plain_text import held_out_text

    held_out_text()  # every run measures its base model's drift on it
    for path in fetch_stream(chosen.stream).values():
        print(path)


def data_show(chosen: argparse.Namespace) -> None:
    """Show a task's card."""
    from himalaya_adapter.streams.catalogue import task_card

    card = task_card(chosen.stream, chosen.task)
    spec = card.task.spec
    lines = [
        f"{spec.name}: {spec.description}",
        f"kind {spec.kind}, language {spec.language}, metric {spec.metric}",
        f"source {card.origin}",
        f"licence {card.licence}",
        f"template {spec.template!r} -> {spec.target!r}",
    ]
    for split, digest in card.task.hashes.items():
        counts = ", ".join(f"{label} {count}" for label, count in card.label_counts.get(split, {}).items())
        labels = f" ({counts})" if spec.labels else ""
        lines.append(f"{split}: {len(card.task.split(split))} items, sha256 {digest[:16]}{labels}")
    lines += [f"left out: {count} items, {reason}" for reason, count in card.skipped.items()]
    lines += [f"example: {item.prompt!r} -> {item.target!r}" for item in card.examples]
    print("\n".join(lines))


def configs_generate(chosen: argparse.Namespace) -> None:
    """Write the run configs of a plan."""
    from himalaya_adapter.backbones.catalogue import BACKBONES
    from himalaya_adapter.experiments.plans import (
        Catalogue,
        draft_configs,
        generate_configs,
        read_plan,
        write_configs,
    )
    from himalaya_adapter.streams import stream_names

    if (chosen.draft_url is None) != (chosen.draft_model is None):
        raise HimalayaError("a draft takes both --draft-url URL and --draft-model NAME")
    plan = read_plan(chosen.plan)
    backbones = {name: getattr(source, "revision", None) for name, source in BACKBONES.items()}
    known = Catalogue(tuple(stream_names()), backbones)
    if chosen.draft_url is None:
        written = generate_configs(plan, known)
    else:
        written = draft_configs(plan, known, chosen.draft_url, chosen.draft_model)
    for path in write_configs(written, chosen.output, overwrite=chosen.overwrite):
        print(path)


def configs_validate(chosen: argparse.Namespace) -> None:
    """Check files of run configs, one line for each."""
    from himalaya_adapter.experiments.plans import check_file

    wrong = 0
    for path in chosen.files:
        try:
            check_file(path)
            print(f"{path}: ok")
        except HimalayaError as error:
            wrong += 1
            print(f"{path}: {' '.join(str(error).split())}")
    if wrong:
        raise HimalayaError(f"{wrong} of {len(chosen.files)} files hold a run config that is not valid")


def generate(chosen: argparse.Namespace) -> None:
    """Answer a prompt, word by word."""
    from transformers import TextStreamer

    from himalaya_adapter.deploy.adapter_folder import load_adapter
    from himalaya_adapter.deploy.answering import AUTO, answer, check_request, choose_task

    try:
        prompt = sys.stdin.read() if chosen.prompt == "-" else chosen.prompt
    except UnicodeDecodeError as error:
        raise HimalayaError("standard input holds something else than text in UTF-8") from error
    check_request(prompt, chosen.max_new_tokens)  # before a model is loaded for nothing
    named = None if chosen.task == AUTO else chosen.task
    adapter = load_adapter(chosen.adapter, task=named, backbone=chosen.backbone)
    task = choose_task(adapter, prompt, chosen.task)
    if task.confidence is not None:
        print(f"task {task.name or 'without a name'}, confidence {task.confidence:.2f}", file=sys.stderr)
    streamer = TextStreamer(adapter.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer(adapter, prompt, chosen.max_new_tokens, streamer)


def export(chosen: argparse.Namespace) -> None:
    """Write an adapter in another form."""
    write, options = EXPORTS[chosen.format]
    for option in ("opset", "graphs", "precision"):
        if getattr(chosen, option) is not None and option not in options:
            raise HimalayaError(f"--{option.removesuffix('s')} says nothing to --format {chosen.format}: leave it out")
    write(chosen, {option: value for option in options if (value := getattr(chosen, option)) is not None})


def _export_lora(chosen: argparse.Namespace, options: Mapping[str, Any]) -> None:
    from himalaya_adapter.deploy.lora_export import export_lora

    for folder in export_lora(chosen.adapter, chosen.output, chosen.task, **options):
        print(folder)


def _export_onnx(chosen: argparse.Namespace, options: Mapping[str, Any]) -> None:
    from himalaya_adapter.deploy.onnx import export_onnx

    parity = export_onnx(chosen.adapter, chosen.output, tasks=chosen.task, **options)
    table = Table("graph", "output", "difference from PyTorch", "of")
    for graph, outputs in parity.items():
        for name, entry in outputs.items():
            table.add_row(graph, name, f"{entry['max_abs']:.1e}", f"{entry['largest']:.3g}")
    Console().print(table)
    print(chosen.output)


def _export_bundle(chosen: argparse.Namespace, options: Mapping[str, Any]) -> None:
    from himalaya_adapter.deploy.bundle.writer import export_bundle

    print(export_bundle(chosen.adapter, chosen.output, tasks=chosen.task, **options))


# What writes a format, and the options that it takes beside a task.
EXPORTS = {
    "bundle": (_export_bundle, ("backbone", "precision")),
    "lora": (_export_lora, ("backbone",)),
    "onnx": (_export_onnx, ("backbone", "opset", "graphs")),
}


def latency(chosen: argparse.Namespace) -> None:
    """Measure the adapter's overhead in ONNX Runtime."""
    from himalaya_adapter.deploy import latency_tables as tables
    from himalaya_adapter.deploy.latency import measure_latency
    from himalaya_adapter.storage import write_json

    if chosen.adapter is not None and chosen.shape is not None:
        raise HimalayaError("give either the folder of an ADAPTER (its whole backbone) or --shape (one layer)")
    if chosen.output is not None and (chosen.output.is_dir() or not chosen.output.parent.is_dir()):
        raise HimalayaError(f"--output {chosen.output}: expected a file in a folder that is there")
    if chosen.adapter is None and chosen.backbone is not None:
        raise HimalayaError("--backbone belongs to an ADAPTER; a layer's shape is named by --shape")
    result = measure_latency(
        *(chosen.adapter, chosen.shape or "llama-2-7b", chosen.precision, chosen.threads, chosen.seconds),
        chosen.backbone,
    )
    console = Console()
    console.print(f"{result['subject']}. {tables.device_line(result)}", highlight=False)
    shown = {"overhead": (tables.OVERHEAD_HEADER, tables.overhead_rows(result))}
    for name in result["graphs"]:
        shown[f"where the time goes, {name}"] = (tables.OPERATOR_HEADER, tables.operator_rows(result, name))
    for title, (header, rows) in shown.items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if chosen.output is not None:
        write_json(chosen.output, result)
        print(chosen.output)
