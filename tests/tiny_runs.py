"""A run small enough for tests: a random Llama on disk, a user's own stream of three tasks, and a run config."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from himalaya_adapter.cli import main
from himalaya_adapter.storage import read_json
from himalaya_adapter.training import stream_runner

PRELOADED = [
    "himalaya_adapter.training",
    "himalaya_adapter.search",
    "himalaya_adapter.report",
]  # by the server that processes are forked off
# A tiny model's drift is not worth a sixth of its run: it is measured on two texts.
held_out_text = stream_runner.held_out_text
stream_runner.held_out_text = cache(lambda: held_out_text()[:2])
TIMEOUT = 240  # seconds, of processes that wait for each other; a tenth of it on an idle machine
TASKS = ("parity", "colour_word", "echo")
NOT_REPEATED = {
    "seconds",
    "train_seconds",
    "eval_seconds",
    "peak_memory_bytes",
    "resumed",
    "evaluation_cost",
    "sha256",
}
COLOURS = ("blue", "green", "red", "white")
ADAPTERS: dict[str, dict[str, Any]] = {
    # So few slots that the third task evicts an atom of the first two.
    "HIMALAYA": {
        "type": "HIMALAYA",
        "options": {"core_atoms": 4, "elastic_atoms": 8, "atoms_per_task": 3, "evict": True, "leaf_size": 2},
    },
    # So few atoms and so short a window that the dictionary grows, and the third task evicts an atom of the first two.
    "HIMALAYA_STRICT": {
        "type": "HIMALAYA_STRICT",
        "options": {
            **{"core_atoms": 4, "elastic_atoms": 6, "leaf_size": 2, "hidden_params": 4000},
            **{"growth_window": 2, "similarity_threshold_tau": 0.99},
        },
    },
    "O_LORA": {"type": "O_LORA", "options": {"r": 2, "lambda_1": 0.1, "target_modules": ["q_proj", "v_proj"]}},
    "LORA": {"type": "LORA", "options": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]}},
    "LILAC": {"type": "LILAC", "dictionary_size": 16, "lora_rank": 2},
    "COLTAS": {"type": "COLTAS", "options": {"components": 16, "mask_atoms": 8, "atoms_per_task": 2}},
    "GLODIS": {"type": "GLODIS"},
}
ADAPTERS["LORA_EWC"] = ADAPTERS["LORA"] | {"ewc_lambda": 0.4}


def write_backbone(
    folder: Path, build: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerFast, **changes: Any
) -> Path:
    """Save a tiny model and its tokenizer as ``save_pretrained`` does."""
    build(**changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_stream(folder: Path) -> Path:
    """Write ``rows.jsonl`` and ``stream.yaml``: a classification, an extraction and a generation task."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": str(number),
            "number": str(number),
            "parity": "yes" if number % 2 == 0 else "no",
            "sentence": f"the {COLOURS[number % 4]} dog {number} was on the sofa" + " and so on" * (number % 5),
            "colour": COLOURS[number % 4],
        }
        for number in range(160)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "language": "en",
        "source": {"files": "rows.jsonl", "group": "id"},
        "caps": {"train": 24, "validation": 2, "test": 8},
    }
    parity = {
        **common,
        **{"name": "parity", "kind": "classification", "labels": ["yes", "no"], "metric": "accuracy"},
        **{"template": "Is {number} even?\nAnswer:", "target": "{parity}", "max_new_tokens": 2},
    }
    colour = {
        **common,
        **{"name": "colour_word", "kind": "extraction", "metric": "token_f1", "max_new_tokens": 4},
        **{"template": "Text: {sentence}\nColour:", "target": "{colour}"},
    }
    echo = {
        **common,
        **{"name": "echo", "kind": "generation", "metric": "chrf", "max_new_tokens": 6},
        **{"template": "Repeat {number}:", "target": "{number} {colour}"},
    }
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "tasks": [parity, colour, echo]}), encoding="utf-8")
    return path


def write_run(folder: Path, backbone: Path, stream: Path, method: str, **training: Any) -> Path:
    """Write the run config ``<method>.yaml``, whose run id is the method in lower case; returns its path."""
    content = {
        "run_id": method.lower(),
        "method": "proposed" if method == "HIMALAYA" else "comparative",
        "method_name": method,
        "model": {"backbone": {"name": str(backbone), "dtype": "float32"}, "adapter": ADAPTERS[method]},
        "dataset": {"name": str(stream), "max_seq_length": 96},
        "training": {"batch_size": 4, "learning_rate": 0.01, "save_steps": 6} | training,
        "evaluation": {"eval_batch_size": 8},
    }
    path = folder / f"{method.lower()}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run_words(place: Path, method: str, **training: Any) -> list[str]:
    """The command line of a run in the folder of the fixture ``place``, without its ``results_dir=``."""
    return ["run", f"run={write_run(place, place / 'backbone', place / 'stream.yaml', method, **training)}"]


def run_until_killed(words: list[str], write: int | str | None, place: str | None = None) -> None:
    """Run ``himalaya WORDS`` and kill this process (SIGKILL) right before it changes the file system.

    Only changes inside the folder ``place``, or else the one named by ``results_dir=``, count: the ``write``-th of
    them, or the first whose path contains the text ``write``; ``None`` lets the run finish.
    """
    results = place or next(word.removeprefix("results_dir=") for word in words if word.startswith("results_dir="))
    changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copytree"}
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        written = event in changes or (event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax")
        if written and str(arguments[0]).startswith(results):
            done += 1
            if done == write or (isinstance(write, str) and write in str(arguments[0])):
                os.kill(os.getpid(), signal.SIGKILL)

    if write is not None:
        sys.addaudithook(count)
    sys.exit(main(words))


def in_own_process(
    words: list[str], write: int | str | None = None, seconds: float | None = None, place: str | None = None
) -> int:
    """Run ``himalaya WORDS`` in a process of its own and kill it at a write (in ``place``) or after some time.

    The process is forked off a server that has imported the package, so it starts in no time.

    Returns:
        The exit status; -9 if it was killed.
    """
    return forked(run_until_killed, words, write, place, seconds=seconds)


def forked(work: Callable[..., None], *arguments: Any, seconds: float | None = None) -> int:
    """Call ``work(*arguments)`` in a process forked off a server that has imported the package; kill it in time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_freeze_and_call, args=(work, arguments))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _freeze_and_call(work: Callable[..., None], arguments: Sequence[Any]) -> None:
    gc.freeze()  # what the server has imported is nobody's to free, and a search through it takes long
    work(*arguments)


def in_two_processes(folder: Path, work: Callable[..., int | None], *arguments: Any) -> list[int]:
    """Call ``work(*arguments)`` in two processes of one group, as torchrun starts them, forked off the server.

    What they print is in ``folder`` afterwards, as ``0.out``, ``0.err``, ``1.out`` and ``1.err``.

    Returns:
        Their exit statuses.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_one_of_two, args=(rank, port, folder, work, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
        process.kill()  # if one waits for another that is no more
        process.join()
    return [process.exitcode for process in processes]


def _one_of_two(rank: int, port: int, folder: Path, work: Callable[..., int | None], arguments: Any) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for stream, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{end}", os.O_WRONLY | os.O_CREAT), stream)
    gc.freeze()
    sys.exit(work(*arguments))


def results(run: Path) -> dict[str, Any]:
    """All that a run has measured except times and memory, and its adapter's tensors, and EWC's, as raw bytes."""
    matrix, metrics = read_json(run / "matrix.json"), read_json(run / "metrics.json")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    files = sorted((run / "adapter").glob("*.safetensors"))
    tensors = {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}
    # float64 scores and losses are compared as they were written: JSON keeps every bit of them.
    return {
        "matrix": _without_times(matrix),
        "metrics": _without_times(metrics),
        "events": _without_times(events),
        "tensors": {
            name: (tensor.dtype, tensor.view(-1).view(torch.uint8).tolist()) for name, tensor in tensors.items()
        },
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_times(entry) for key, entry in value.items() if key not in NOT_REPEATED}
    return value
