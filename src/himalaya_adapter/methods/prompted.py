"""What methods have in common whose adapters can tell a task from its prompt."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from .shared_state import SharedStateModel


class PromptedModel(SharedStateModel):
    """A tuner that watches where a pass and a generation begin, and lets the prompts choose the task there.

    Its adapters have ``infers_task``, ``read_prompts`` and ``observe_prompts``. What it reports and takes note of
    concerns the active adapters, and can be called on the `PeftModel` itself.
    """

    separates_tasks = True
    switches_tasks = True
    recognises_tasks = True

    def observe_prompts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Remember what the open task's prompts look like, as moments of fixed size, for ``set_task(None)``.

        Args:
            input_ids: Prompts without their answers, ``(batch, length)``.
            attention_mask: 0 at padding; without it all tokens count.
        """
        for adapter in self._active():
            adapter.observe_prompts(*self._embedded(input_ids, attention_mask))

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of every stored tensor, by name."""
        return {name: size for adapter in self._active() for name, size in adapter.stored_bytes().items()}

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms: ``atom_norm_max``, and where the update's is bounded ``update_norm_max``."""
        norms = [adapter.norm_certificate() for adapter in self._active()]
        return {name: max(norm.get(name, 0.0) for norm in norms) for name in norms[0]}

    def task_statistics(self) -> dict[str, Any]:
        """What is worth knowing of the current task, and of the room that is left."""
        return self._active()[0].task_statistics()

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the adapter, then watch the model's passes and generations."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if not hasattr(self, "_hook"):
            self._hook = model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
            self._generates: bool | None = False  # None: the prompts of this generation have been read
            if hasattr(model, "generate"):
                vars(model)["generate"] = partial(self._generate, cast(Any, model).generate)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. PEFT's own version passes by the model's hooks."""
        return self.model(*args, **kwargs)

    def _begin_pass(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        """Let the prompts choose the task, at the first pass of a generation."""
        waiting = [adapter for adapter in self._active() if adapter.infers_task]
        if not waiting:
            return
        given = inspect.signature(model.forward).bind_partial(*args, **inputs).arguments
        given |= given.pop("kwargs", {})
        cache = given.get("past_key_values")
        if self._generates is None or (cache is not None and cache.get_seq_length() > 0):
            return
        if self._generates:
            self._generates = None  # the passes to come are of the same prompts
        mask = given.get("attention_mask")
        mask = mask if torch.is_tensor(mask) and mask.dim() == 2 else None
        embeddings = given.get("inputs_embeds")
        if embeddings is None:
            prompts = self._embedded(given["input_ids"], mask)
        else:
            prompts = embeddings, torch.ones(embeddings.shape[:2], device=embeddings.device) if mask is None else mask
        for adapter in waiting:
            adapter.read_prompts(*prompts)

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's own ``generate``: prompts choose the task once, with a cache or without."""
        self._generates = True
        try:
            return generate(*args, **kwargs)
        finally:
            self._generates = False

    def _embedded(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        embeddings = cast(nn.Embedding, cast(PreTrainedModel, self.model).get_input_embeddings())(input_ids)
        return embeddings, torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def _check_target(self, base: nn.Module, config: PeftConfig, key: str) -> None:
        if cast(Any, config).placement == "weights" and not isinstance(base, nn.Linear):
            raise TypeError(
                f"target '{key}' is a {type(base).__name__}, not a linear module; placement='weights' adapts "
                "linear modules only: name those in target_modules, or use placement='residual_stream'"
            )

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._hook.remove()
        vars(model).pop("generate", None)
        return model


def hidden_width(model: nn.Module) -> int | None:
    """Width of a language model's hidden states; ``None`` if its config names none."""
    config: Any = getattr(model, "config", None)
    return getattr(config.get_text_config(), "hidden_size", None) if hasattr(config, "get_text_config") else None


def embedding_width(model: nn.Module) -> int | None:
    """Width of a language model's input embeddings; a model without any cannot infer tasks from prompts."""
    lookup: Any = getattr(model, "get_input_embeddings", lambda: None)
    return getattr(lookup(), "embedding_dim", None)
