"""The commands of a bundle: ``python run.py check|generate|latency``."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .manifest import Bundle, BundleError, open_bundle

if TYPE_CHECKING:
    from tokenizers import Tokenizer

USER_ERROR = 2
INTERRUPTED = 130
NEEDED = ("numpy", "onnxruntime")


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run one command on the bundle in ``folder``; returns the exit status, 2 after a mistake."""
    chosen = _parser().parse_args(arguments)
    try:
        for name in NEEDED:
            if importlib.util.find_spec(name) is None:
                raise BundleError(f"{name} is not installed: pip install {' '.join(NEEDED)}")
        if chosen.threads < 1:
            raise BundleError(f"--threads {chosen.threads}: expected a whole number of at least 1")
        chosen.command(open_bundle(folder), chosen)
    except BundleError as error:
        print(f"run.py: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description="Runs this bundle; see README.md.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="does this machine compute what the exporting one did?")
    check.set_defaults(command=_check)
    generate = commands.add_parser("generate", help="answer a prompt as one of the tasks")
    generate.add_argument("text", nargs="?", help="the prompt (needs the package tokenizers)")
    generate.add_argument("--task", required=True, help="the task whose answer is wanted")
    generate.add_argument("--tokens", metavar="ID,ID,…", help="the prompt as token ids, in place of a text")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.set_defaults(command=_generate)
    latency = commands.add_parser("latency", help="the adapter's overhead on this machine")
    latency.add_argument("--seconds", type=float, default=20.0, help="for prefill and for decoding each")
    latency.add_argument("--output", type=Path, metavar="FILE.json", help="write all that was measured")
    latency.set_defaults(command=_latency)
    for command in (check, generate, latency):
        command.add_argument("--threads", type=int, default=1)
    return parser


# Imports stand inside the commands: a missing package is reported before it is imported.


def _check(bundle: Bundle, chosen: argparse.Namespace) -> None:
    from .check import check

    for line in check(bundle, chosen.threads):
        print(line)


def _generate(bundle: Bundle, chosen: argparse.Namespace) -> None:
    from .graph import CausalGraph, Threads

    task = bundle.task_index(chosen.task)
    if (chosen.text is None) == (chosen.tokens is None):
        raise BundleError("give either a text or --tokens ID,ID,…")
    if chosen.max_new_tokens < 1:
        raise BundleError(f"--max-new-tokens {chosen.max_new_tokens}: expected a whole number of at least 1")
    if chosen.tokens is not None:
        try:
            prompt = [int(word) for word in chosen.tokens.split(",")]
        except ValueError as error:
            raise BundleError(f"--tokens {chosen.tokens} is not a list of token ids such as 1,2,3") from error
        largest = bundle.manifest["vocabulary"] - 1
        if not all(0 <= token <= largest for token in prompt):
            raise BundleError(f"--tokens {chosen.tokens}: token ids go from 0 to {largest}")
    elif importlib.util.find_spec("tokenizers") is None:
        raise BundleError("a text needs the package tokenizers (pip install tokenizers); --tokens takes token ids")
    else:
        if not chosen.text.strip():
            raise BundleError("the prompt is empty: give the text that is to be answered")
        prompt = bundle.manifest["start_tokens"] + _tokenizer(bundle).encode(chosen.text, add_special_tokens=False).ids
    positions = bundle.manifest["positions"]
    if positions is not None and len(prompt) + chosen.max_new_tokens > positions:
        raise BundleError(
            f"{len(prompt)} tokens of prompt and --max-new-tokens {chosen.max_new_tokens}: the backbone has "
            f"{positions} positions for both"
        )
    graph = CausalGraph(bundle.graph("adapted"), Threads(chosen.threads))
    found = graph.greedy(prompt, task, chosen.max_new_tokens, bundle.manifest["end_tokens"])
    for piece in map(str, found) if chosen.tokens is not None else _pieces(bundle, found):
        print(piece, end=" " if chosen.tokens is not None else "", flush=True)
    print()


def _tokenizer(bundle: Bundle) -> "Tokenizer":
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text, as in training
    return tokenizer


def _pieces(bundle: Bundle, tokens: Iterable[int]) -> Iterator[str]:
    """The text token by token; a character of several tokens comes with its last one."""
    tokenizer, seen, text, told = _tokenizer(bundle), [], "", 0
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith("�"):
            yield text[told:]
            told = len(text)
    yield text[told:]


def _latency(bundle: Bundle, chosen: argparse.Namespace) -> None:
    from .check import stored_prompt
    from .latency import measure, summary
    from .measure import device

    if not chosen.seconds > 0:
        raise BundleError(f"--seconds {chosen.seconds:g}: expected a number above 0")
    if chosen.output is not None and (chosen.output.is_dir() or not chosen.output.parent.is_dir()):
        raise BundleError(f"--output {chosen.output}: expected a file in a folder that is there")
    graphs = {name: bundle.graph(name) for name in ("base", "adapted")}
    measured = {"device": device(), "precision": bundle.manifest["precision"]}
    print(", ".join(f"{name} {value}" for name, value in measured["device"].items()))
    measured["measurements"] = measure(graphs, stored_prompt(bundle), chosen.threads, chosen.seconds)
    for line in summary(measured["measurements"]):
        print(line)
    if chosen.output is not None:
        chosen.output.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
