"""Whether a bundle computes here what it computed where it was made."""

from collections.abc import Iterator

import numpy as np

from .graph import Array, CausalGraph
from .manifest import Bundle, BundleError

LOGITS = "logits.npy"  # after the prompt, ``(1 + tasks, vocabulary)``, without the adapter first
NEW_TOKENS = 16


def answers(bundle: Bundle, threads: int = 1) -> Iterator[tuple[Array, list[int]]]:
    """What follows the bundle's prompt without the adapter, and with it as each task.

    Yields:
        The logits after the prompt ``(vocabulary,)`` and the greedy tokens.
    """
    prompt = bundle.manifest["prompt"]
    for name, tasks in (("base", 1), ("adapted", len(bundle.tasks))):
        graph = CausalGraph(bundle.graph(name), threads)
        for task in range(tasks):
            logits, _ = graph.step(np.array([prompt], np.int64), graph.empty_cache, task)
            yield logits[0, -1], list(graph.greedy(prompt, task, NEW_TOKENS, bundle.manifest["end_tokens"]))


def check(bundle: Bundle, threads: int) -> Iterator[str]:
    """Compare with the answers in the bundle; one line for the backbone and for each task.

    Raises:
        BundleError: An answer differs.
    """
    wanted, tolerance = np.load(bundle.folder / LOGITS, allow_pickle=False), bundle.manifest["tolerance"]
    names = ["without the adapter", *(f"task {name}" for name in bundle.tasks)]
    expected = zip(names, wanted, bundle.manifest["greedy"], answers(bundle, threads), strict=True)
    for name, wanted_logits, wanted_tokens, (logits, tokens) in expected:
        difference, equal = float(np.abs(logits - wanted_logits).max()), tokens == wanted_tokens
        line = (
            f"{name}: largest difference of a logit {difference:.1e} (allowed {tolerance:.1e}), "
            f"greedy tokens {'equal' if equal else 'differ'}"
        )
        if not difference <= tolerance or not equal:
            raise BundleError(f"this machine computes something else: {line}")
        yield line
