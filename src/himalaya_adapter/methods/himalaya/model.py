"""HIMALAYA as a PEFT tuner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from himalaya_adapter.backbones.shape import embedding_width, hidden_width
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.merging import refuse_if_merged
from himalaya_adapter.methods.release import check_finite
from himalaya_adapter.methods.task_inference.frozen import DECODER_LAYERS, middle_layer, middle_states
from himalaya_adapter.methods.task_inference.prompted import PromptedModel
from himalaya_adapter.names import normalised

from .adapter import HimalayaAdapter
from .channels import measure
from .config import HimalayaConfig
from .layer import HimalayaLayer, StreamLayer
from .weights import HashedLinear

# What a release leaves out: the task being learnt, what growth and consolidation remember, its prompts.
TRAINING = ("atoms", "fisher.", "router.task_moment")
LAYERS = {"residual_stream": StreamLayer, "weights": HashedLinear}  # by the placement


class HimalayaModel(PromptedModel):
    """Puts a `StreamLayer` in the place of each decoder layer, or a `HashedLinear` in that of each linear module.

    A task is learnt between `start_task` and `end_task`; afterwards its answers never change. All methods that follow
    act on the active adapters and can be called on the `PeftModel` itself.
    """

    prefix = "himalaya_"
    tuner_layer_cls = HimalayaLayer
    may_be_left_out = ("fisher.",)

    # The life of a task ----------------------------------------------------------------------------------------

    def forget_task(self, name: str) -> None:
        """Remove a task: the adapter no longer knows its name, and all other tasks answer bit for bit as before.

        Its atoms become zero and their slots free, but for those that another task shares. Its row of coefficients,
        the moments of its prompts and all directions of past gradients are deleted too. In the file then still depend
        on the task's data: atoms that another task shares, and with ``evict=True`` the combinations that stand in for
        what was evicted while the task was there.

        Raises:
            HimalayaError: The task is not known, another one is being learnt, the adapter is merged or a release, or
                modules to save, or parameters of the model, are trained with it. Nothing is changed.
        """
        with self.taking_back(f"forget_task({name!r})"):
            for adapter in self._active():
                adapter.forget_task(name)

    def drop_task(self) -> None:
        """Drop what the open task has learnt since it began: a known task is as it was, a new one is gone.

        Raises:
            HimalayaError: A merged adapter, or modules to save, or parameters of the model, are trained with it.
        """
        with self.taking_back("drop_task()"):
            for adapter in self._active():
                adapter.drop_task()

    @property
    def open_task(self) -> str | None:
        """Name of the task that is being learnt."""
        return self._active()[0].open_task

    @contextmanager
    def learning(self, name: str) -> Iterator[None]:
        """Learn a task in a loop of your own: ``with model.learning("tickets"): ...``.

        As `start_task`, `watch_prompts`, `protect` with any optimiser that steps inside, and `end_task`. After an
        exception the adapter is as before.

        Args:
            name: The task's name.

        Raises:
            HimalayaError: As `start_task`.
        """
        with self.unchanged_by_errors(f"learning({name!r})"), register_optimizer_step_pre_hook(self._before_step):
            self.start_task(name)
            self.watch_prompts()
            yield
            if self.open_task != normalised(name):
                raise HimalayaError(f"task '{name}' was ended, or another one started, inside of its block")
            self.end_task()

    def protect(
        self, optimizer: torch.optim.Optimizer, on_event: Callable[[Event], None] | None = None
    ) -> list[RemovableHandle]:
        """Watch an optimiser's steps: one whose gradient is not finite is skipped, the others join the Fisher memory.

        Earlier tasks need no protection: they are no parameters.

        Returns:
            Handles; ``remove()`` them to stop.
        """
        return [optimizer.register_step_pre_hook(self._before_step)]

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        steps = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for adapter in self._active():
            gradient = adapter.atoms.grad if id(adapter.atoms) in steps else None
            if gradient is not None and not gradient.isfinite().all():
                optimizer.zero_grad()
            elif gradient is not None and adapter.fisher is not None:
                adapter.fisher.observe(gradient)

    # Answering -------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the first active adapter has learnt."""
        return self._active()[0].tasks.known()

    # What is reported ------------------------------------------------------------------------------------------

    def task_hash(self, name: str) -> str:
        """SHA-256 of what is stored of a task: as long as it is the same, the answers are, bit for bit."""
        return self._active()[0].task_hash(name)

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = "all-linear" if peft_config.placement == "weights" else DECODER_LAYERS
        others = [kind for placement, kind in LAYERS.items() if placement != peft_config.placement]
        if any(isinstance(one, tuple(others)) for one in self.model.modules()):
            raise TypeError(f"placement='{peft_config.placement}': first unload() the adapter of the other placement")
        return peft_config

    def _new_shared_state(
        self, config: HimalayaConfig, targets: Sequence[nn.Module], model: nn.Module
    ) -> HimalayaAdapter:
        if config.layers not in (None, len(targets)):
            raise ValueError(
                f"the adapter was made for {config.layers} adapted modules, this model has {len(targets)}: "
                "load it onto the model that it was made for; a new adapter needs a config of its own"
            )
        config.layers = len(targets)
        linear = [one for one in targets if isinstance(one, nn.Linear)]
        outputs = {one.out_features for one in linear}
        width = hidden_width(model, default=max(outputs) if len(linear) == len(targets) else None)
        if config.placement == "residual_stream" and not outputs <= {width}:
            raise TypeError(
                f"a target returns {min(outputs - {width})} features, others {width}: the update of the residual "
                "stream has one width, so name modules whose output is added to the stream"
            )
        adapter = HimalayaAdapter(config, width)
        if middle_layer(model) is None:
            adapter.router.enough = 0  # no prompt can be read
        return adapter

    def _new_layer(self, base: Any, config: PeftConfig) -> Any:
        return LAYERS[config.placement](base, **get_quantization_kwargs(self))

    def _read(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        refuse_if_merged(self.model, "a prompt's task is found")
        return middle_states(self.model, embeddings, mask), mask

    def _begin_pass(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled() and any(one.trains or one.open_task for one in self._active()):
            self._measure_channels(model)  # a loop may leave out train()
        super()._begin_pass(model, args, inputs)

    @torch.compiler.disable
    def _measure_channels(self, model: nn.Module) -> None:
        """Before the first step of an adapter; a model without tokens has none."""
        for name, adapter in zip(self.active_adapters, self._active(), strict=True):
            begun = adapter.channels.any() or adapter.atoms.any() or adapter.tasks.learnt.any()
            if adapter.config.placement == "residual_stream" and not begun and embedding_width(model):
                layers = [one for one in model.modules() if isinstance(one, StreamLayer) and name in one.shared]
                adapter.channels.copy_(measure(model, layers, adapter.config.seed))

    def _add_adapter(self, layer: Any, name: str, config: PeftConfig) -> None:
        super()._add_adapter(layer, name, config)
        adapter = layer.shared[name]
        layer.number[name] = adapter.attached
        adapter.attached += 1
        if isinstance(layer, HashedLinear):
            layer.add_adapter(name, config)

    @staticmethod
    def _pack(state: Mapping[str, Tensor], config: HimalayaConfig) -> dict[str, Tensor]:
        """All that answers, as it is: atoms are stored in few bits anyway.

        Raises:
            HimalayaError: A value is not finite, or a task is being learnt.
        """
        check_finite(state)
        if not state["atoms"].is_meta and state["atoms"].any():
            raise HimalayaError("what is being learnt is not stored yet: call model.end_task() before save_release")
        return {name: tensor.detach().clone() for name, tensor in state.items() if not name.startswith(TRAINING)}
