"""HIMALAYA as a PEFT tuner."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.merging import refuse_if_merged
from himalaya_adapter.methods.shared_state import SharedStateModel

from .adapter import HimalayaAdapter
from .config import HimalayaConfig
from .growth import Event
from .layer import HimalayaLayer, StreamLayer
from .release import pack, unpack
from .tasks import FROZEN
from .weights import HashedLinear

logger = logging.getLogger(__name__)
# The names that transformers gives to a decoder's list of layers.
DECODER_LAYERS = r"(.*\.)?(layers|h|blocks)\.\d+"
ALL_LINEAR = "all-linear"
EXAMPLES = 16  # of a task, by which an earlier one is chosen to start from


class HimalayaModel(SharedStateModel):
    """Puts a `StreamLayer` in the place of each decoder layer, or a `HashedLinear` in that of each linear module.

    A task is learnt between `start_task` and `end_task`; afterwards its answers never change. All methods that follow
    act on the active adapters and can be called on the `PeftModel` itself.
    """

    prefix = "himalaya_"
    tuner_layer_cls = HimalayaLayer

    # The life of a task ----------------------------------------------------------------------------------------

    def start_task(self, name: str, examples: Mapping[str, Any] | None = None) -> list[Event]:
        """Begin to learn task ``name``: a new one starts as the frozen model, a known one is learnt further.

        Args:
            name: The task's name, at most 64 bytes.
            examples: Model inputs with labels (``input_ids``, ``attention_mask``, ``labels``, ...) of a few of the
                task's items, by which ``warm_start`` chooses the earlier task that the new one starts from.

        Returns:
            What happened: sharing and evictions of a task that had not been ended, and the start from an earlier one.

        Raises:
            HimalayaError: No room, a name that cannot be stored, a merged adapter or a release. Nothing is changed.
        """
        refuse_if_merged(self.model, f"start_task({name!r})")
        for adapter in self._active():
            if not adapter.atoms.requires_grad:
                raise HimalayaError("the adapter was loaded for inference: load it with is_trainable=True to train it")
        events = []
        for adapter in self._active():
            fresh = adapter.tasks.find(name) is None
            events += adapter.start_task(name)
            if fresh and examples is not None and adapter.config.warm_start:
                events += self._warm_start(adapter, examples)
        return events

    def end_task(self) -> list[Event]:
        """Store the task that is being learnt. From now on the adapter answers as it; nothing changes it any more.

        Returns:
            Slots that it shares with other tasks, and evictions that made room for it.
        """
        return [event for adapter in self._active() for event in adapter.end_task()]

    @torch.no_grad()
    def _warm_start(self, adapter: HimalayaAdapter, examples: Mapping[str, Any]) -> list[Event]:
        """Let the open task start from the earlier one with the lowest loss on its first examples."""
        count = len(examples["input_ids"])
        batch = {
            key: value[:EXAMPLES] if torch.is_tensor(value) and len(value) == count else value
            for key, value in examples.items()
        }
        row, was_training = int(adapter.tasks.open_row), self.model.training
        losses: dict[int, float] = {}
        self.model.eval()
        try:
            for candidate in (FROZEN, *adapter.tasks.learnt.nonzero().flatten().tolist()):
                adapter.rows = (candidate,)
                losses[candidate] = self.model(**batch).loss.item()
        finally:
            adapter.answer_as(row)
            self.model.train(was_training)
        best = min(losses, key=lambda candidate: losses[candidate])
        if best == FROZEN or not losses[best] < losses[FROZEN]:
            return []
        adapter.begin_from(best)
        source = adapter.tasks.name(best)
        return [{"event": "warm_start", "from": source, "loss": losses[best], "fresh_loss": losses[FROZEN]}]

    def protect(self, optimizer: torch.optim.Optimizer, **_: Any) -> list[RemovableHandle]:
        """Watch an optimiser's steps: one whose gradient is not finite is skipped, the others join the Fisher memory.

        Earlier tasks need no protection: they are no parameters.

        Returns:
            Handles; ``remove()`` them to stop.
        """

        def before_step(*_: Any) -> None:
            for adapter in self._active():
                gradient = adapter.atoms.grad
                if gradient is not None and gradient.isfinite().all():
                    adapter.fisher.observe(gradient)
                elif gradient is not None:
                    optimizer.zero_grad()

        return [optimizer.register_step_pre_hook(before_step)]

    # Answering -------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the first active adapter has learnt."""
        return self._active()[0].tasks.known()

    def set_task(self, name: str | Sequence[str | None] | None) -> None:
        """Answer as task ``name`` from now on.

        Args:
            name: A task; a list with one for each row of a batch, in which ``None`` is the frozen model; or ``None``:
                each prompt is answered as the task that it looks like.

        Raises:
            HimalayaError: A task that is not known, or a merged adapter.
        """
        refuse_if_merged(self.model, f"set_task({name!r})")
        for adapter in self._active():
            adapter.set_task(name)

    def observe_prompts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Remember what the open task's prompts look like, as moments of fixed size, for `set_task(None)`.

        Args:
            input_ids: Prompts without their answers, ``(batch, length)``.
            attention_mask: 0 at padding; without it all tokens count.
        """
        for adapter in self._active():
            adapter.observe_prompts(*self._embedded(input_ids, attention_mask))

    @torch.no_grad()
    def infer_task(
        self, input_ids: Tensor, names: Sequence[str] | None = None, attention_mask: Tensor | None = None
    ) -> list[tuple[str | None, float]]:
        """Say which task prompts look like.

        Args:
            input_ids: ``(batch, length)``.
            names: The tasks that may be named; by default all that have been learnt.
            attention_mask: 0 at padding; without it all tokens count.

        Returns:
            For each prompt the name, or ``None`` if it is not among the names, and a confidence in [0, 1].
        """
        adapter = self._active()[0]
        rows, confidences = adapter.recognise(*self._embedded(input_ids, attention_mask))
        found = [None if row == FROZEN else adapter.tasks.name(row) for row in rows]
        allowed = self.tasks if names is None else names
        return [(name if name in allowed else None, one) for name, one in zip(found, confidences, strict=True)]

    def remembers_task(self, name: str) -> bool:
        """Whether the adapter has learnt this task and knows its prompts."""
        return name in self.tasks

    def _embedded(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        embeddings = cast(nn.Embedding, cast(PreTrainedModel, self.model).get_input_embeddings())(input_ids)
        return embeddings, torch.ones_like(input_ids) if attention_mask is None else attention_mask

    # What is reported ------------------------------------------------------------------------------------------

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of every stored tensor of the active adapters, by name."""
        return {name: size for adapter in self._active() for name, size in adapter.stored_bytes().items()}

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms over all tasks and layers: ``update_norm_max`` and ``atom_norm_max`` (at most 1)."""
        norms = [adapter.norm_certificate() for adapter in self._active()]
        return {name: max(norm[name] for norm in norms) for name in norms[0]}

    def task_statistics(self) -> dict[str, Any]:
        """How much room is left for further tasks."""
        return self._active()[0].task_statistics()

    def task_hash(self, name: str) -> str:
        """SHA-256 of what answers as a task: the same as long as its answers are, bit for bit."""
        return self._active()[0].task_hash(name)

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Watch where a pass begins, then create the adapter."""
        if not hasattr(self, "_hook"):
            self._hook = model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
        if peft_config.target_modules is None:
            stream = cast(HimalayaConfig, peft_config).placement == "residual_stream"
            peft_config.target_modules = DECODER_LAYERS if stream else ALL_LINEAR
        return peft_config

    def _new_shared_state(self, config: PeftConfig, targets: Sequence[nn.Module], model: nn.Module) -> HimalayaAdapter:
        config = cast(HimalayaConfig, config)
        if config.layers not in (None, len(targets)):
            raise ValueError(
                f"the adapter was made for {config.layers} adapted modules, this model has {len(targets)}: "
                "load it onto the model that it was made for"
            )
        config.layers = len(targets)
        bases = [module.get_base_layer() if isinstance(module, HimalayaLayer) else module for module in targets]
        adapter = HimalayaAdapter(config, max(_width(base, model) for base in bases), _embedding_width(model))
        adapter.entries = sum(config.rank * sum(base.weight.shape) for base in bases if isinstance(base, nn.Linear))
        return adapter

    def _check_target(self, base: nn.Module, config: PeftConfig, key: str) -> None:
        if cast(HimalayaConfig, config).placement == "weights" and not isinstance(base, nn.Linear):
            raise TypeError(
                f"target '{key}' is a {type(base).__name__}, not a linear module; placement='weights' adapts "
                "linear modules only: name those in target_modules, or use placement='residual_stream'"
            )

    def _new_layer(self, base: nn.Module, config: PeftConfig) -> Any:
        in_weights = cast(HimalayaConfig, config).placement == "weights"
        return HashedLinear(base, **get_quantization_kwargs(self)) if in_weights else StreamLayer(base)

    def _add_adapter(self, layer: Any, name: str, config: PeftConfig) -> None:
        super()._add_adapter(layer, name, config)
        layer.number[name] = sum(isinstance(one, HimalayaLayer) and name in one.number for one in self.model.modules())
        if isinstance(layer, HashedLinear):
            layer.add_adapter(name, cast(HimalayaConfig, config))
            layer._move_adapter_to_device_of_base_layer(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. PEFT's own version passes by the model's hooks."""
        return self.model(*args, **kwargs)

    def _begin_pass(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Let the prompts choose the task, at the first pass of a generation."""
        waiting = [adapter for adapter in self._active() if adapter.infers_task]
        cache = inputs.get("past_key_values")
        if not waiting or (cache is not None and cache.get_seq_length() > 0):
            return
        mask = inputs.get("attention_mask")
        mask = mask if torch.is_tensor(mask) and mask.dim() == 2 else None
        if inputs.get("inputs_embeds") is not None:
            embeddings = inputs["inputs_embeds"]
            prompts = embeddings, torch.ones(embeddings.shape[:2], device=embeddings.device) if mask is None else mask
        else:
            prompts = self._embedded(inputs["input_ids"] if "input_ids" in inputs else args[0], mask)
        for adapter in waiting:
            adapter.read_prompts(*prompts)

    def unload(self) -> nn.Module:
        """Give back the model as it was before it was adapted."""
        self._hook.remove()
        return super().unload()

    @classmethod
    def _pack(cls, state: Mapping[str, Tensor], config: PeftConfig) -> dict[str, Tensor]:
        return pack(state)

    @classmethod
    def _unpack(
        cls, packed: Mapping[str, Tensor], config: PeftConfig, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return unpack(packed, state)


def _width(base: nn.Module, model: nn.Module) -> int:
    """Width of what a module returns: that of the model's hidden states, or a linear module's own."""
    config = getattr(model, "config", None)
    hidden_size = (
        getattr(config.get_text_config(), "hidden_size", None) if hasattr(config, "get_text_config") else None
    )
    if hidden_size is None and isinstance(base, nn.Linear):
        return base.out_features
    if hidden_size is None:
        raise ValueError(f"the width of a {type(base).__name__} is not known: the model's config has no hidden_size")
    return hidden_size


def _embedding_width(model: nn.Module) -> int | None:
    """Width of a language model's input embeddings; a model without any cannot infer tasks from prompts."""
    lookup: Any = getattr(model, "get_input_embeddings", lambda: None)
    return getattr(lookup(), "embedding_dim", None)
