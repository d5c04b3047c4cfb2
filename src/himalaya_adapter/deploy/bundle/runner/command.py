"""The commands of a bundle: ``python run.py check|generate|latency``."""

import argparse
import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .manifest import Bundle, BundleError, open_bundle
from .question import question

USER_ERROR = 2
MOST_THREADS = 1024


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run one command on the bundle in ``folder``; returns the exit status, 2 after a mistake."""
    chosen = _parser().parse_args(arguments)
    try:
        chosen.command(open_bundle(folder), chosen)
    except ImportError as error:
        mend = "pip install numpy onnxruntime; a prompt as text needs tokenizers too, --tokens does not"
        print(f"run.py: {error.name} is not installed: {mend}", file=sys.stderr)
        return USER_ERROR
    except (BundleError, OSError) as error:
        print(f"run.py: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return 0


def token_ids(words: str) -> list[int]:
    """Token ids out of a text such as ``1,2,3``."""
    return [int(word) for word in words.split(",")]


def count(word: str, most: int = 10**6) -> int:
    """A whole number of at least 1, and at most ``most``."""
    if not 1 <= int(word) <= most:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number from 1 to {most}")
    return int(word)


def threads(word: str) -> int:
    """A number of threads."""
    return count(word, MOST_THREADS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description="Runs this bundle; see README.md.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="does this machine compute what the exporting one did?")
    check.set_defaults(command=_check)
    generate = commands.add_parser("generate", help="answer a prompt as one of the tasks")
    generate.add_argument("--task", required=True, help="the task whose answer is wanted")
    prompt = generate.add_mutually_exclusive_group(required=True)
    prompt.add_argument("text", nargs="?", help="the prompt (needs the package tokenizers)")
    prompt.add_argument("--tokens", type=token_ids, metavar="ID,ID,…", help="the prompt as token ids")
    generate.add_argument("--max-new-tokens", type=count, default=64)
    generate.set_defaults(command=_generate)
    latency = commands.add_parser("latency", help="the adapter's overhead on this machine")
    latency.add_argument("--seconds", type=float, default=20.0, help="for prefill and for decoding each")
    latency.add_argument("--output", type=Path, metavar="FILE.json", help="write all that was measured")
    latency.set_defaults(command=_latency)
    for command in (check, generate, latency):
        command.add_argument("--threads", type=threads, default=1)
    return parser


# Imports of packages stand inside the commands: a damaged bundle is told first, and a missing package in one line.


def _check(bundle: Bundle, chosen: argparse.Namespace) -> None:
    from .check import check

    for line in check(bundle, chosen.threads):
        print(line)


def _generate(bundle: Bundle, chosen: argparse.Namespace) -> None:
    name = unicodedata.normalize("NFC", chosen.task)  # as all are stored
    if name not in bundle.tasks:
        raise BundleError(f"unknown task '{name}' (known: {', '.join(bundle.tasks)})")
    vocabulary, positions = bundle.manifest["vocabulary"], bundle.manifest["positions"]
    if chosen.tokens is not None:
        prompt = chosen.tokens
        if not all(0 <= token < vocabulary for token in prompt):
            raise BundleError(f"--tokens: token ids go from 0 to {vocabulary - 1}")
    elif any("\ud800" <= letter <= "\udfff" for letter in chosen.text):
        raise BundleError("the prompt holds something else than text in UTF-8")
    elif not chosen.text.strip():
        raise BundleError("the prompt is empty: give the text that is to be answered")
    elif (template := bundle.manifest["templates"].get(name, "")) is None:
        raise BundleError(f"task '{name}' was learnt from conversations: give the tokens of a chat (--tokens)")
    else:
        from tokenizers import Tokenizer
        from tokenizers.decoders import DecodeStream

        tokenizer = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text, as in training
        text = question(template, chosen.text)
        prompt = bundle.manifest["start_tokens"] + tokenizer.encode(text, add_special_tokens=False).ids
    if positions is not None and len(prompt) + chosen.max_new_tokens > positions:
        raise BundleError(
            f"{len(prompt)} tokens of prompt and --max-new-tokens {chosen.max_new_tokens}: the backbone has "
            f"{positions} positions for both"
        )
    from .graph import CausalGraph

    graph = CausalGraph(bundle.graph("adapted"), chosen.threads)
    task, ends = bundle.tasks.index(name), bundle.manifest["end_tokens"]
    answer = graph.greedy(prompt, task, chosen.max_new_tokens, ends)
    if chosen.tokens is not None:
        print(*answer)
        return
    stream = DecodeStream(skip_special_tokens=True)
    for token in answer:  # each word as soon as it is there: a small machine takes its time
        print(stream.step(tokenizer, token) or "", end="", flush=True)
    print()


def _latency(bundle: Bundle, chosen: argparse.Namespace) -> None:
    from .latency import device, measure, told

    graphs, here = (bundle.graph("base"), bundle.graph("adapted")), device()
    precision, prompt = bundle.manifest["precision"], bundle.manifest["prompt"]
    measured = measure(*graphs, precision, prompt, chosen.threads, chosen.seconds)
    for line in told(here, measured):
        print(line)
    if chosen.output is not None:
        content = json.dumps({"device": here, "measurements": measured}, indent=2)
        chosen.output.write_text(content + "\n", encoding="utf-8")
