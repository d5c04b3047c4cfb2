"""A causal model as an ONNX graph: one step with its cache, greedy text, and a step to be timed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .manifest import BundleError

Array = np.ndarray[Any, Any]
PAST, PRESENT = "past_key_values.", "present."
ERRORS_ONLY = 3
SEED = 0


@dataclass(frozen=True)
class Threads:
    """How many threads compute, and whether all sessions of the process share them.

    Sessions with threads of their own are in each other's way: those of one still spin when another one runs.
    """

    count: int = 1
    shared: bool = False


class CausalGraph:
    """A decoder, or one layer of it, with its key-value cache as inputs and outputs.

    Args:
        path: The graph; external weights lie beside it.
        threads: Threads of one operator; operators run one after the other.
        profile: Path prefix of ONNX Runtime's profile; without it nothing is profiled.

    Raises:
        BundleError: ONNX Runtime cannot open the graph: it is damaged, or newer than this ONNX Runtime.
    """

    def __init__(self, path: Path, threads: Threads = Threads(), profile: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if threads.shared:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads, options.inter_op_num_threads = threads.count, 1
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot open {path.name}: {reason}") from error
        inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.takes_task = "task" in inputs
        self.width: int | None = inputs["inputs_embeds"].shape[-1] if "inputs_embeds" in inputs else None
        # A cache entry is (batch, key-value heads, past, width of a head).
        self.cache = {name: one.shape for name, one in inputs.items() if name.startswith(PAST)}

    def empty_cache(self, batch: int = 1) -> dict[str, Array]:
        """The cache before the first token."""
        return {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in self.cache.items()}

    def step(self, tokens: Array, cache: dict[str, Array], task: int) -> tuple[Array, dict[str, Array]]:
        """Run ``tokens`` ``(batch, sequence)`` (embeddings ``(batch, sequence, d)`` for a layer) after ``cache``.

        Returns:
            Logits ``(batch, sequence, vocabulary)`` (a layer: hidden states ``(batch, sequence, d)``), the new cache.
        """
        first, *presents = self.session.run(None, self._feeds(tokens, cache, task))
        names = (PAST + name.removeprefix(PRESENT) for name in self.outputs[1:])
        return first, dict(zip(names, presents, strict=True))

    def greedy(self, tokens: Sequence[int], task: int, most: int, ends: Sequence[int] = ()) -> Iterator[int]:
        """The most probable next tokens, one by one, until one is in ``ends`` or ``most`` are out."""
        step, cache = np.array([tokens], np.int64), self.empty_cache()
        for _ in range(most):
            logits, cache = self.step(step, cache, task)
            token = int(logits[0, -1].argmax())
            if token in ends:
                return
            yield token
            step = np.array([[token]], np.int64)

    def timed_step(self, tokens: int, past: int, prompt: Array, task: int = 0) -> Callable[[], None]:
        """A step of ``tokens`` tokens (batch 1) after ``past`` ones, its inputs ready: only the graph is timed.

        Args:
            tokens: New tokens.
            past: Tokens in the cache.
            prompt: Token ids ``(n,)``, repeated as often as needed; a layer takes random embeddings.
            task: Index of the task.
        """
        if self.width is not None:
            shape = (1, past + tokens, self.width)
            content: Array = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
        else:
            content = np.resize(prompt, (1, past + tokens))
        cache = self.empty_cache()
        if past:
            cache = self.step(content[:, :past], cache, task)[1]
        binding = self.session.io_binding()
        for name, value in self._feeds(np.ascontiguousarray(content[:, past:]), cache, task).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for name in self.outputs:
            binding.bind_output(name)

        def run() -> None:
            self.session.run_with_iobinding(binding)

        return run

    def _feeds(self, tokens: Array, cache: dict[str, Array], task: int) -> dict[str, Array]:
        batch, length = tokens.shape[:2]
        past = next(iter(cache.values())).shape[2]
        feeds = {
            "input_ids" if self.width is None else "inputs_embeds": tokens,
            "attention_mask": np.ones((batch, past + length), np.int64),
            **cache,
        }
        return feeds | ({"task": np.full(batch, task, np.int64)} if self.takes_task else {})
