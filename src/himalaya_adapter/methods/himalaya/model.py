"""HIMALAYA as a PEFT tuner."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layer import HimalayaLayer
from .shared import SharedAdapter

HAS_MLP = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2")


class HimalayaModel(BaseTuner):
    """Wraps the target modules and owns the adapters' shared state, one `SharedAdapter` per adapter name.

    The verbs of the stream (`start_task`, `end_task`, `set_task`, ...) act on the active adapters and can be called on
    the `PeftModel` itself.
    """

    prefix = "himalaya_"
    tuner_layer_cls = HimalayaLayer
    uses_shared_state = True
    target_module_mapping = {model_type: ["mlp"] for model_type in HAS_MLP}  # noqa: RUF012  (PEFT declares it so)

    # The stream's life cycle -----------------------------------------------------------------------------------

    def start_task(self, name: str, examples: Mapping[str, Tensor] | None = None) -> None:
        """Begin to learn task ``name``: it gets its own atoms and a head that starts as a no-op.

        Args:
            name: The task's name; its hash is the task's code.
            examples: Model inputs with labels (``input_ids``, ``attention_mask``, ``labels``, ...) of a few of the
                task's items. From their hidden states the very first task sets the router's latent directions, which
                never move afterwards; from their gradients every task promotes its first residuals to atoms. Without
                them both start at random, and learning is slower.
        """
        for shared in self._active():
            shared.start_task(name)
        if examples is not None:
            for shared in self._active():
                inputs, curvature = self._first_residuals(shared, examples)
                if shared.tasks_learnt == 0:
                    shared.fit_projection(inputs)
                shared.promote(curvature)

    def anneal(self, progress: float) -> None:
        """Lower the gates' temperature; ``progress`` in [0, 1] is the share of the task's steps done."""
        for shared in self._active():
            shared.anneal(progress)

    def protect(self, optimizer: torch.optim.Optimizer) -> list[RemovableHandle]:
        """Let every step of ``optimizer`` keep off what earlier tasks rely on; ``remove()`` the handles to stop.

        Args:
            optimizer: The optimiser that trains the adapter. The parameters' change is projected, not only their
                gradient: an adaptive optimiser rescales gradients after they are projected.
        """
        before: list[dict[str, Tensor]] = []

        def remember(*_: Any) -> None:
            before[:] = [shared.before_step() for shared in self._active()]

        def project(*_: Any) -> None:
            for shared, parameters in zip(self._active(), before, strict=True):
                shared.after_step(parameters)

        return [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(project)]

    def end_task(self) -> None:
        """Close the task: what it has used is protected from now on."""
        for shared in self._active():
            shared.end_task()

    def set_task(self, name: str) -> None:
        """Answer as task ``name`` from now on. A new name is a new task: its gain starts near zero."""
        for shared in self._active():
            shared.set_task(name)

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of every stored tensor of the active adapters, by name."""
        return {name: size for shared in self._active() for name, size in shared.stored_bytes().items()}

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms seen in training: ``update_norm_max`` (bound 1) and ``atom_norm_max`` (bound 1.05)."""
        norms = [shared.norm_certificate() for shared in self._active()]
        return {name: max(norm[name] for norm in norms) for name in norms[0]}

    def task_statistics(self) -> dict[str, Any]:
        """What the current task has used so far: active atoms per token, usage of each atom, head directions left."""
        return self._active()[0].task_statistics()

    def _active(self) -> list[SharedAdapter]:
        return [cast(SharedAdapter, self.himalaya_shared[name]) for name in self.active_adapters]

    def _first_residuals(self, shared: SharedAdapter, examples: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        r"""One pass over a few examples: the layers' inputs, and how the loss falls with a shared rank-one update.

        Returns:
            The inputs ``(n, d)`` of all adapted layers at all tokens that are not padding, and the ``(d, d)`` sum of
            :math:`-\tfrac12 (g \hat x^\top + \hat x g^\top)` over them, :math:`g` being the gradient of the loss by
            the layer's output. To first order, an update :math:`\gamma r r^\top` lowers the loss by
            :math:`\gamma r^\top C r` (docs/method.md, section 6).
        """
        inputs: list[Tensor] = []
        curvature: list[Tensor] = []
        mask = examples.get("attention_mask", torch.ones_like(examples["input_ids"])).bool()

        def seen(states: Tensor) -> Tensor:  # some models flatten the batch before a module
            return states.detach().float().reshape(-1, states.shape[-1])[mask.flatten()]

        def widen(states: Tensor) -> Tensor:  # narrower modules use the leading slices of the atoms
            return nn.functional.pad(states, (0, shared.width - states.shape[-1]))

        def record(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            hidden_states = seen(positional[0] if positional else named["hidden_states"])
            normalised = hidden_states / hidden_states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
            inputs.append(widen(normalised))
            acted_on = widen(hidden_states if shared.config.placement == "weights" else normalised)
            first = output[0] if isinstance(output, tuple) else output

            def add(gradient: Tensor) -> None:
                product = widen(seen(gradient)).T @ acted_on
                curvature.append(-(product + product.T) / 2)
                if len(curvature) > 1:
                    curvature[0] += curvature.pop()

            first.register_hook(add)

        layers = [layer for layer in self.modules() if isinstance(layer, HimalayaLayer)]
        handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
        was_training = self.training
        try:
            with torch.enable_grad():
                self.eval()(**examples).loss.backward()
        finally:
            self.train(was_training)
            self.zero_grad()
            for handle in handles:
                handle.remove()
        return torch.cat(inputs), curvature[0]

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the adapter's shared state, then let PEFT wrap the targets."""
        if not hasattr(self, "himalaya_shared"):
            self.himalaya_shared = nn.ModuleDict()
        model_config = self.get_model_config(model)
        config = self._prepare_adapter_config(self.peft_config[adapter_name], model_config)
        targets = [module for name, module in model.named_modules() if self._check_target_module_exists(config, name)]
        if targets:
            width = max(_width(module, model_config) for module in targets)
            self.himalaya_shared[adapter_name] = SharedAdapter(config, width)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, HimalayaLayer) else HimalayaLayer(target)
        base = layer.get_base_layer()
        if peft_config.placement == "weights" and not isinstance(base, nn.Linear):
            raise TypeError(
                f"target '{current_key}' is a {type(base).__name__}, not a linear module; placement='weights' adapts "
                "linear modules only: name those in target_modules, or use placement='residual_stream'"
            )
        layer.himalaya_shared[adapter_name] = cast(SharedAdapter, self.himalaya_shared[adapter_name])
        if layer is not target:
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version copies `weight` from the wrapped module, which an MLP block does not have.
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its shared state."""
        super().delete_adapter(adapter_name)
        del self.himalaya_shared[adapter_name]

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"himalaya_shared.{adapter_name}.", "himalaya_shared.", 1)


def _width(module: nn.Module, model_config: dict[str, Any]) -> int:
    base = module.get_base_layer() if isinstance(module, HimalayaLayer) else module
    if isinstance(base, nn.Linear):
        return max(base.in_features, base.out_features)
    if "hidden_size" in model_config:
        return model_config["hidden_size"]
    raise ValueError(f"the width of a {type(base).__name__} is not known: the model's config has no hidden_size")
