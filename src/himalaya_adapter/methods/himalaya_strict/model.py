"""HIMALAYA as a PEFT tuner."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from himalaya_adapter.backbones.shape import embedding_width, hidden_width
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.linear_delta import LLAMA_LIKE
from himalaya_adapter.methods.output_layer import OutputLayer
from himalaya_adapter.methods.task_inference.prompted import PromptedModel

from .adapter import StrictAdapter
from .config import HimalayaStrictConfig
from .release import VALUES, pack, unpack
from .router import task_code
from .task_start import first_residuals

logger = logging.getLogger(__name__)


class HimalayaStrictLayer(OutputLayer):
    """Adds to the output of ``base_layer`` the rank-one update of every active adapter.

    The layer owns no parameter: it only refers to the adapters' shared state, which lives on the tuner.
    """

    adapter_layer_names = ("shared",)
    no_weight = "HIMALAYA_STRICT cannot be merged: its update differs from token to token. Keep the adapter attached."

    def edited(
        self, name: str, output: Tensor, original: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Add an adapter's update, which depends on the module's input."""
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return output + self.shared[name](hidden_states, output.shape[-1]).to(output.dtype)


class HimalayaStrictModel(PromptedModel):
    """Wraps the target modules and owns the adapters' shared state, one `StrictAdapter` per adapter name.

    The verbs of the stream (`start_task`, `end_task`, `set_task`, ...) act on the active adapters and can be called on
    the `PeftModel` itself.
    """

    prefix = "himalaya_strict_"
    tuner_layer_cls = HimalayaStrictLayer
    finite_values = VALUES
    _pack, _unpack = staticmethod(pack), staticmethod(unpack)
    target_module_mapping = {kind: ["mlp"] for kind in (*LLAMA_LIKE, "phi3", "gpt2")}  # noqa: RUF012  (as PEFT's)

    # The stream's life cycle -----------------------------------------------------------------------------------

    def start_task(self, name: str, examples: Mapping[str, Any] | None = None) -> list[Event]:
        """Begin to learn task ``name``: it gets its own atoms and a head that starts as a no-op.

        Args:
            name: The task's name; its hash is the task's code.
            examples: Model inputs with labels (``input_ids``, ``attention_mask``, ``labels``, ...) of a few of the
                task's items. From their hidden states the very first task sets the router's latent directions, which
                never move afterwards; from their gradients every task promotes its first residuals to atoms. Without
                them both start at random, and learning is slower.

        Returns:
            The evictions that made room for the task: slot, importance, which atom stands in, what share survives.

        Raises:
            HimalayaError: The adapter was loaded from a release file.
        """
        events = super().start_task(name)
        if examples is not None:
            for adapter in self._active():
                inputs, curvature = first_residuals(self, adapter, examples)
                if not (inputs.isfinite().all() and curvature.isfinite().all()):
                    logger.warning("task %s: its first residuals are not finite, so it starts at random", name)
                    continue
                adapter.promote(name, inputs, curvature)
        return events

    def anneal(self, progress: float) -> None:
        """Lower the gates' temperature; ``progress`` in [0, 1] is the share of the task's steps done."""
        for adapter in self._active():
            adapter.update.progress = progress

    def protect(
        self, optimizer: torch.optim.Optimizer, on_event: Callable[[Event], None] | None = None
    ) -> list[RemovableHandle]:
        """Let every step of ``optimizer`` keep off what earlier tasks rely on; ``remove()`` the handles to stop.

        A step whose gradients are not finite is skipped: nothing changes.

        Args:
            optimizer: The optimiser that trains the adapter. The parameters' change is projected, not only their
                gradient: an adaptive optimiser rescales gradients after they are projected.
            on_event: Called with every promotion of a residual to an atom.
        """

        def remember(*_: Any) -> None:
            finite = [adapter.before_step() for adapter in self._active()]
            if not all(finite):
                optimizer.zero_grad()

        def project(*_: Any) -> None:
            for adapter in self._active():
                event = adapter.after_step()
                if event is not None:
                    adapter.forget_moments(optimizer, event.slot)
                    if on_event is not None:
                        on_event(event)

        return [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project)]

    def skip_step(self) -> None:
        """Forget what the passes since the last step have seen: the step that they were for is skipped."""
        for adapter in self._active():
            adapter.skip_step()

    def remembers_task(self, name: str) -> bool:
        """Whether the memory of prompts has a slot of this task; those of the oldest of very many are taken again."""
        memory = self._active()[0].memory
        code = task_code(name, memory.codes.shape[1]).to(memory.codes.device)
        return bool((memory.known_codes().sign() == code.sign()).all(1).any())

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    def _new_shared_state(
        self, config: HimalayaStrictConfig, targets: Sequence[nn.Module], model: nn.Module
    ) -> StrictAdapter:
        linear = [max(one.in_features, one.out_features) for one in targets if isinstance(one, nn.Linear)]
        hidden = [hidden_width(model)] if len(linear) < len(targets) else []
        return StrictAdapter(config, max(linear + hidden), embedding_width(model))

    def _begin_pass(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        super()._begin_pass(model, args, inputs)
        mask = inputs.get("attention_mask")
        for adapter in self._active():
            adapter.begin_pass(mask.bool() if torch.is_tensor(mask) and mask.dim() == 2 else None)
