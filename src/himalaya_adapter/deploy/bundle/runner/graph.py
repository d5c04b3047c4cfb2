"""A causal model as an ONNX graph: one step with its cache, greedy text, and a step to be timed."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .manifest import BundleError

Array = np.ndarray[Any, Any]
PAST, PRESENT = "past_key_values.", "present."
ERRORS_ONLY = 3


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime on the CPU; operators run one after the other.

    Args:
        path: The graph; external weights lie beside it.
        threads: Of one operator, 0 for all cores. If there are several, all sessions of the process share them: those
            of one session would still spin when another one runs.

    Raises:
        BundleError: ONNX Runtime cannot open the graph: it is damaged, or newer than this ONNX Runtime.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads > 1:
        _make_pool(threads)
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        reason = str(error).strip().splitlines()[0]
        raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot open {path.name}: {reason}") from error


@functools.cache
def _make_pool(threads: int) -> None:
    """Make the threads that the process's sessions share; there is one such pool, so its size cannot change."""
    onnxruntime.set_global_thread_pool_sizes(threads, 1)


class CausalGraph:
    """A language model with its key-value cache as inputs and outputs.

    Args:
        path: As for `open_session`.
        threads: As for `open_session`.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.session = open_session(path, threads)
        self.inputs = {one.name: one.shape for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]
        # A cache entry is (batch, key-value heads, past, width of a head).
        shapes = {name: shape for name, shape in self.inputs.items() if name.startswith(PAST)}
        self.empty_cache = {name: np.zeros((1, of[1], 0, of[3]), np.float32) for name, of in shapes.items()}

    def step(self, tokens: Array, cache: dict[str, Array], task: int) -> tuple[Array, dict[str, Array]]:
        """Run ``tokens`` ``(1, sequence)`` after ``cache``.

        Returns:
            Logits ``(1, sequence, vocabulary)``, and the new cache.
        """
        first, *presents = self.session.run(None, self._feeds(tokens, cache, task))
        names = (PAST + name.removeprefix(PRESENT) for name in self.outputs[1:])
        return first, dict(zip(names, presents, strict=True))

    def greedy(self, tokens: Sequence[int], task: int, most: int, ends: Sequence[int] = ()) -> Iterator[int]:
        """The most probable next tokens, one by one, until one is in ``ends`` or ``most`` are out."""
        step, cache = np.array([tokens], np.int64), self.empty_cache
        for _ in range(most):
            logits, cache = self.step(step, cache, task)
            token = int(logits[0, -1].argmax())
            if token in ends:
                return
            yield token
            step = np.array([[token]], np.int64)

    def timed_step(self, tokens: int, past: int, prompt: Sequence[int]) -> Callable[[], None]:
        """A step of the first task, its inputs ready: only the graph is timed.

        Args:
            tokens: New tokens, batch 1.
            past: Tokens in the cache.
            prompt: Token ids, repeated as often as needed.
        """
        content = np.resize(np.array(prompt, np.int64), (1, past + tokens))
        cache = self.step(content[:, :past], self.empty_cache, 0)[1] if past else self.empty_cache
        binding = self.session.io_binding()
        for name, value in self._feeds(np.ascontiguousarray(content[:, past:]), cache, 0).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for name in self.outputs:
            binding.bind_output(name)
        return functools.partial(self.session.run_with_iobinding, binding)

    def _feeds(self, tokens: Array, cache: dict[str, Array], task: int) -> dict[str, Array]:
        seen = next(iter(cache.values())).shape[2] + tokens.shape[1]
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((1, seen), np.int64),
            "task": np.array([task]),
            **cache,
        }
        return {name: feeds[name] for name in self.inputs}
