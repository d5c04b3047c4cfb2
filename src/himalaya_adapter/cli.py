"""The command ``himalaya``: what can be typed, and how a command ends."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from himalaya_adapter import commands
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
        resumable = chosen.command in (commands.run, commands.sweep, commands.search)
        goes_on = "; the same command goes on from here" if resumable else ""
        print(f"himalaya: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has no reader either
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="himalaya", description=DESCRIPTION)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = subcommands.add_parser("run", help="learn a stream; the same command continues an interrupted run")
    run.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="run=NAME mode=trial|full results_dir=… …")
    run.set_defaults(command=commands.run)

    sweep = subcommands.add_parser("sweep", help="many runs from one line, through Hydra's launchers")
    sweep.add_argument("overrides", nargs="+", metavar="KEY=VALUE,VALUE", help="run=NAME training.seed=0,1,2 …")
    sweep.set_defaults(command=commands.sweep)

    search = subcommands.add_parser(
        "search", help="search the run's hyper-parameters; several processes may share it, and it continues, too"
    )
    search.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE", help="run=NAME optuna.n_trials=20 results_dir=… …"
    )
    search.set_defaults(command=commands.search)

    budget = subcommands.add_parser(
        "budget", help="bytes, parameters and operations of a run's adapter; no weights needed"
    )
    budget.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="run=NAME …")
    budget.set_defaults(command=commands.budget)

    compare = subcommands.add_parser("compare", help="compare finished runs of one stream")
    compare.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help='results_dir=… run_ids=\'["a", "b"]\'')
    compare.set_defaults(command=commands.compare)

    data = subcommands.add_parser("data", help="list, fetch or show the data of a stream")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the streams and their tasks")
    listing.add_argument("stream", nargs="?")
    listing.set_defaults(command=commands.data_list)
    fetch = actions.add_parser("fetch", help="bring a stream's archives into the cache")
    fetch.add_argument("stream")
    fetch.set_defaults(command=commands.data_fetch)
    show = actions.add_parser("show", help="the card of one task")
    show.add_argument("stream")
    show.add_argument("task")
    show.set_defaults(command=commands.data_show)

    configs = subcommands.add_parser("configs", help="write run configs from an experiment plan, or check some")
    actions = configs.add_subparsers(required=True, metavar="ACTION")
    from_plan = actions.add_parser("generate", help="write the run configs of a plan")
    from_plan.add_argument("plan", help="the plan: a YAML or JSON file, or the name of a packaged one")
    from_plan.add_argument("--output", type=Path, default=Path("run_configs"), help="folder (default: run_configs)")
    from_plan.add_argument("--overwrite", action="store_true", help="replace files that have other content")
    from_plan.add_argument("--draft-url", metavar="URL", help="let a language model behind this endpoint write them")
    from_plan.add_argument("--draft-model", metavar="NAME", help="the model's name there")
    from_plan.set_defaults(command=commands.configs_generate)
    validate = actions.add_parser("validate", help="check run configs, one line for each file")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    validate.set_defaults(command=commands.configs_validate)

    generate = subcommands.add_parser("generate", help="answer a prompt with a run's adapter or its release")
    generate.add_argument(
        "adapter", help="a run's folder, its adapter or release folder, a copy of one, or owner/name"
    )
    generate.add_argument("prompt", help="the text; '-' reads standard input")
    generate.add_argument("--task", default="auto", help="answer as this task (default: auto, as the prompt says)")
    generate.add_argument("--backbone", help="name or folder, where it is not the one that the adapter names")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.set_defaults(command=commands.generate)

    export = subcommands.add_parser("export", help="write a run's adapter as ONNX graphs, a bundle or plain LoRAs")
    export.add_argument("adapter", type=Path, help="a run's folder, its adapter or release folder, or a copy of one")
    export.add_argument("--format", required=True, choices=sorted(commands.EXPORTS), help="what to write")
    export.add_argument("--output", type=Path, required=True, help="the folder to write")
    export.add_argument("--task", action="append", default=[], help="a task to export (repeatable; default: all)")
    export.add_argument("--backbone", help="name or folder, where it is not the one that the adapter names")
    export.add_argument("--opset", type=int, help="ONNX opset of the graphs (onnx; default: 18)")
    export.add_argument(
        "--graph",
        dest="graphs",
        action="append",
        choices=("adapter", "model"),
        help="only this graph (onnx; repeatable)",
    )
    export.add_argument("--precision", help="of the base's weights: fp32, int8 or int4 (bundle; default: fp32)")
    export.set_defaults(command=commands.export)

    latency = subcommands.add_parser("latency", help="the adapter's overhead in ONNX Runtime on this machine")
    latency.add_argument("adapter", nargs="?", type=Path, help="a run's folder: its whole backbone is measured")
    latency.add_argument("--backbone", help="name or folder, where it is not the one that the adapter names")
    latency.add_argument("--shape", metavar="BACKBONE", help="measure one decoder layer of this shape (default)")
    latency.add_argument("--precision", nargs="+", default=["fp32"], help="of the base's weights: fp32 int8 int4")
    latency.add_argument("--threads", type=int, help="default: one for each CPU")
    latency.add_argument("--seconds", type=float, default=20.0, help="for each phase and precision (default: 20)")
    latency.add_argument("--output", type=Path, metavar="FILE.json", help="write all that was measured")
    latency.set_defaults(command=commands.latency)
    return parser


if __name__ == "__main__":
    sys.exit(main())
