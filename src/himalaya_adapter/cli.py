"""The command ``himalaya``."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from himalaya_adapter.errors import HimalayaError

USER_ERROR = 2
INTERRUPTED = 130
OF_DEPLOY = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")  # packages of the extra `deploy`
DESCRIPTION = "Continual learning of a long stream of tasks with one tiny adapter of constant size."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake is one line on standard error and status 2."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "absl", "datasets", "transformers", "onnx_ir", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        chosen.command(chosen)
    except HimalayaError as error:
        print(f"himalaya: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except ModuleNotFoundError as error:
        if error.name not in OF_DEPLOY:
            raise
        print(f"himalaya: {error.name} is missing: pip install 'himalaya-adapter[deploy]'", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if chosen.command in (_run, _sweep, _search) else ""
        print(f"himalaya: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has no reader either
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="himalaya", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="learn a stream; the same command continues an interrupted run")
    run.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="run=NAME mode=trial|full results_dir=… …")
    run.set_defaults(command=_run)

    sweep = commands.add_parser("sweep", help="many runs from one line, through Hydra's launchers")
    sweep.add_argument("overrides", nargs="+", metavar="KEY=VALUE,VALUE", help="run=NAME training.seed=0,1,2 …")
    sweep.set_defaults(command=_sweep)

    search = commands.add_parser(
        "search", help="search the run's hyper-parameters; several processes may share it, and it continues, too"
    )
    search.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE", help="run=NAME optuna.n_trials=20 results_dir=… …"
    )
    search.set_defaults(command=_search)

    budget = commands.add_parser(
        "budget", help="bytes, parameters and operations of a run's adapter; no weights needed"
    )
    budget.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="run=NAME …")
    budget.set_defaults(command=_budget)

    compare = commands.add_parser("compare", help="compare finished runs of one stream")
    compare.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help='results_dir=… run_ids=\'["a", "b"]\'')
    compare.set_defaults(command=_compare)

    data = commands.add_parser("data", help="list, fetch or show the data of a stream")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the streams and their tasks")
    listing.add_argument("stream", nargs="?")
    listing.set_defaults(command=_data_list)
    fetch = actions.add_parser("fetch", help="bring a stream's archives into the cache")
    fetch.add_argument("stream")
    fetch.set_defaults(command=_data_fetch)
    show = actions.add_parser("show", help="the card of one task")
    show.add_argument("stream")
    show.add_argument("task")
    show.set_defaults(command=_data_show)

    configs = commands.add_parser("configs", help="write run configs from an experiment plan, or check some")
    actions = configs.add_subparsers(required=True, metavar="ACTION")
    from_plan = actions.add_parser("generate", help="write the run configs of a plan")
    from_plan.add_argument("plan", help="the plan: a YAML or JSON file, or the name of a packaged one")
    from_plan.add_argument("--output", type=Path, default=Path("run_configs"), help="folder (default: run_configs)")
    from_plan.add_argument("--overwrite", action="store_true", help="replace files that have other content")
    from_plan.add_argument("--draft-url", metavar="URL", help="let a language model behind this endpoint write them")
    from_plan.add_argument("--draft-model", metavar="NAME", help="the model's name there")
    from_plan.set_defaults(command=_configs_generate)
    validate = actions.add_parser("validate", help="check run configs, one line for each file")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    validate.set_defaults(command=_configs_validate)

    generate = commands.add_parser("generate", help="answer a prompt with a run's adapter or its release")
    generate.add_argument(
        "adapter", help="a run's folder, its adapter or release folder, a copy of one, or owner/name"
    )
    generate.add_argument("prompt", help="the text; '-' reads standard input")
    generate.add_argument("--task", default="auto", help="answer as this task (default: auto, as the prompt says)")
    generate.add_argument("--backbone", help="name or folder, where it is not the one that the adapter names")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.set_defaults(command=_generate)

    export = commands.add_parser("export", help="write a run's adapter as ONNX graphs, a bundle or plain LoRAs")
    export.add_argument("adapter", type=Path, help="a run's folder, its adapter or release folder, or a copy of one")
    export.add_argument("--format", required=True, choices=sorted(EXPORTS), help="what to write")
    export.add_argument("--output", type=Path, required=True, help="the folder to write")
    export.add_argument("--task", action="append", default=[], help="a task to export (repeatable; default: all)")
    export.add_argument("--backbone", help="name or folder, where it is not the one that the adapter names")
    export.add_argument("--opset", type=int, help="ONNX opset of the graphs (onnx; default: 18)")
    export.add_argument(
        "--graph",
        dest="graphs",
        action="append",
        choices=("adapter", "layer", "model"),
        help="only this graph (onnx; repeatable)",
    )
    export.add_argument("--precision", help="of the base's weights: fp32, int8 or int4 (bundle; default: fp32)")
    export.set_defaults(command=_export)

    latency = commands.add_parser("latency", help="the adapter's overhead in ONNX Runtime on this machine")
    latency.add_argument("adapter", nargs="?", type=Path, help="a run's folder: its whole backbone is measured")
    latency.add_argument("--backbone", help="name or folder, where it is not the one that the adapter names")
    latency.add_argument("--shape", metavar="BACKBONE", help="measure one decoder layer of this shape (default)")
    latency.add_argument("--precision", nargs="+", default=["fp32"], help="of the base's weights: fp32 int8 int4")
    latency.add_argument(
        "--routing", nargs="+", default=[], metavar="FORM", help="of the operator, each against the base"
    )
    latency.add_argument("--threads", type=int, help="default: one for each CPU")
    latency.add_argument("--seconds", type=float, default=20.0, help="for each phase and precision (default: 20)")
    latency.add_argument("--output", type=Path, metavar="FILE.json", help="write all that was measured")
    latency.set_defaults(command=_latency)
    return parser


# Imports stand inside the commands: each loads only the floors that it needs.


def _run(chosen: argparse.Namespace) -> None:
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


def _sweep(chosen: argparse.Namespace) -> None:
    from himalaya_adapter.sweep import sweep

    failures = sweep(chosen.overrides)
    for failure in failures[:-1]:
        print(f"himalaya: {' '.join(failure.split())}", file=sys.stderr)
    if failures:
        raise HimalayaError(failures[-1])


def _search(chosen: argparse.Namespace) -> None:
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.report import write_search_report
    from himalaya_adapter.search import run_search

    launch = compose_run(chosen.overrides)
    print(write_search_report(run_search(launch.run, launch.results_dir, overwrite=launch.overwrite)))


def _budget(chosen: argparse.Namespace) -> None:
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


def _compare(chosen: argparse.Namespace) -> None:
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


def _data_list(chosen: argparse.Namespace) -> None:
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


def _data_fetch(chosen: argparse.Namespace) -> None:
    from himalaya_adapter.streams.catalogue import fetch_stream
    from himalaya_adapter.streams.plain_text import held_out_text

    held_out_text()  # every run measures its base model's drift on it
    for path in fetch_stream(chosen.stream).values():
        print(path)


def _data_show(chosen: argparse.Namespace) -> None:
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


def _configs_generate(chosen: argparse.Namespace) -> None:
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


def _configs_validate(chosen: argparse.Namespace) -> None:
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


def _generate(chosen: argparse.Namespace) -> None:
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


def _export(chosen: argparse.Namespace) -> None:
    write, options = EXPORTS[chosen.format]
    for option in ("opset", "graphs", "precision"):
        if getattr(chosen, option) is not None and option not in options:
            raise HimalayaError(f"--{option.removesuffix('s')} says nothing to --format {chosen.format}: leave it out")
    write(chosen, {option: value for option in options if (value := getattr(chosen, option)) is not None})


def _export_lora(chosen: argparse.Namespace, options: Mapping[str, Any]) -> None:
    from himalaya_adapter.deploy.lora_export import export_lora

    exports = export_lora(chosen.adapter, chosen.output, chosen.task, **options)
    table = Table("task", "per token", "frozen", "LoRA", "loss", "explained")
    for one in exports:
        scores = [f"{score:.3f}" for score in (one.routed, one.frozen, one.lora, one.loss)]
        explained = "exact" if one.mean_explained is None else f"{one.mean_explained:.3f}"
        table.add_row(one.task, *scores, explained)
    Console().print(table)
    print(chosen.output)


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


def _latency(chosen: argparse.Namespace) -> None:
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
        *(chosen.adapter, chosen.shape or "llama-2-7b", chosen.precision, chosen.routing, chosen.threads),
        *(chosen.seconds, chosen.backbone),
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


if __name__ == "__main__":
    sys.exit(main())
