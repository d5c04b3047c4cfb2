"""Whether a bundle computes here what it computed where it was made."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .graph import Array, CausalGraph, Threads
from .manifest import Bundle, BundleError

PROMPT, LOGITS, TEXT = "check/prompt.npy", "check/logits.npy", "check/greedy.npy"
NO_TOKEN = -1  # after the end of a text


def answers(bundle: Bundle, tokens: Array, most: int, threads: int = 1) -> Iterator[tuple[Array, Array]]:
    """What the backbone answers without the adapter, and with it as each task.

    Args:
        bundle: The bundle.
        tokens: The prompt ``(length,)``.
        most: Most new tokens ``m``.
        threads: Threads of one operator.

    Yields:
        The logits after the prompt ``(vocabulary,)`` and the greedy tokens ``(m,)``, ``NO_TOKEN`` after their end.
    """
    for name, tasks in (("base", 1), ("adapted", len(bundle.tasks))):
        graph = CausalGraph(bundle.graph(name), Threads(threads))
        for task in range(tasks):
            logits, _ = graph.step(tokens[None], graph.empty_cache(), task)
            greedy = np.full(most, NO_TOKEN, np.int64)
            found = list(graph.greedy(tokens.tolist(), task, most, bundle.manifest["end_tokens"]))
            greedy[: len(found)] = found
            yield logits[0, -1], greedy


def check(bundle: Bundle, threads: int) -> Iterator[str]:
    """Compare with the answers in the bundle; one line for the backbone and for each task.

    Raises:
        BundleError: An answer differs.
    """
    prompt, logits, greedy = (_read(bundle.folder / name) for name in (PROMPT, LOGITS, TEXT))
    tolerance = bundle.manifest["check"]["tolerance"]
    names = ["without the adapter", *(f"task {name}" for name in bundle.tasks)]
    for number, found in enumerate(answers(bundle, prompt, greedy.shape[1], threads)):
        difference = float(np.abs(found[0] - logits[number]).max())
        equal = int((found[1] == greedy[number]).sum())
        line = (
            f"{names[number]}: largest difference of a logit {difference:.1e} (allowed {tolerance:.1e}), "
            f"{equal} of {greedy.shape[1]} greedy tokens equal"
        )
        if not difference <= tolerance or equal < greedy.shape[1]:
            raise BundleError(f"this machine computes something else: {line}")
        yield line


def stored_prompt(bundle: Bundle) -> Array:
    """The prompt ``(n,)`` that the answers follow."""
    return _read(bundle.folder / PROMPT)


def _read(path: Path) -> Array:
    return np.asarray(np.load(path, allow_pickle=False))
