"""What methods have in common whose layers share a state: where it lives, how it is saved and loaded."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import (
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
    _maybe_include_all_linear_layers,
)
from torch import Tensor, nn
from transformers.modeling_utils import local_torch_dtype

from himalaya_adapter.errors import HimalayaError

from .release import CHECKSUM, INFERENCE_ONLY, Tensors, check_finite, check_layout, has_release, prefixed, seal, unseal
from .targets import TargetsModel


class SharedState(nn.Module):
    """What all layers of one adapter share. All of it that evolves is a parameter or a persistent buffer."""

    # The content of the release file that the adapter was loaded from, which is what is saved again.
    packed: dict[str, Tensor] | None = None
    # The prompts of the generation that runs: several rows of a batch may stand for one, as beams do.
    generates = 0
    # Attributes that belong to the state, and are no tensors.
    beside_tensors: tuple[str, ...] = ()

    def refuse_if_released(self) -> None:
        """Make sure that the adapter may learn.

        Raises:
            HimalayaError: It was loaded from a release file: saving would not write what is learnt.
        """
        if self.packed is not None:
            raise HimalayaError(INFERENCE_ONLY)

    def check_replacement(self, state: Tensors) -> None:
        """Refuse a state that is about to be loaded in the place of this one, if it may not be.

        Raises:
            HimalayaError: As said.
        """

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of every stored tensor, by its name."""
        stored = self.packed or self.state_dict()
        return {name: tensor.numel() * tensor.element_size() for name, tensor in stored.items()}


class SharedStateModel(TargetsModel):
    """A PEFT tuner that owns one `SharedState` per adapter name, in the `ModuleDict` ``<prefix>shared``.

    Layers refer to it through a plain dictionary, ``shared``, so that torch does not register it once per layer. In a
    file its entries are named ``base_model.<prefix>shared.*``. A file is checked name by name before anything is
    loaded. A method whose config has a field ``released`` has a release file (`save_release`), and fills in `_pack`
    and `_unpack`.
    """

    uses_shared_state = True
    # Beginnings of the names, inside the adapter, of tensors whose values must be finite; all by default.
    finite_values: tuple[str, ...] = ("",)
    # Beginnings of the names of what an old file may hold, and an adapter need not.
    may_be_left_out: tuple[str, ...] = ()

    @abstractmethod
    def _new_shared_state(self, config: Any, targets: Sequence[nn.Module], model: nn.Module) -> SharedState:
        """The fresh shared state of an adapter.

        Args:
            config: The adapter's.
            targets: The modules that it adapts, bare.
            model: The whole model.
        """

    @staticmethod
    def _pack(state: Tensors, config: Any) -> dict[str, Tensor]:
        """What a release file holds of an adapter's state; on the meta device shapes and types only.

        Args:
            state: The shared state by its own names, and what layers own by its name in a file.
            config: The adapter's.
        """
        raise NotImplementedError

    @staticmethod
    def _unpack(packed: Tensors, config: Any, state: Tensors) -> dict[str, Tensor]:
        """The way back: the part of ``state`` that `_pack` kept; by default as it is in the file."""
        return dict(packed)

    @property
    def _shared(self) -> nn.ModuleDict:
        return cast(nn.ModuleDict, getattr(self, f"{self.prefix}shared"))

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        # Methods keep their buffers in step themselves. DistributedDataParallel, which asks the `PeftModel` around the
        # tuner for this, would put the first process's in the place of all others', and cannot send 16-bit integers.
        return [f"base_model.{name}" for name, _ in self.named_buffers() if name.startswith(f"{self.prefix}shared.")]

    def _active(self) -> list[Any]:
        return [self._shared[name] for name in self.active_adapters]

    @local_torch_dtype(torch.float32)  # whatever torch's own defaults are: what a seed draws depends on both
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the adapter's shared state, then let PEFT wrap the targets.

        PEFT's own hooks before and after fire for the first adapter only.

        Raises:
            HimalayaError: The config is a release's and the adapter is to be trained.
            TypeError: A target is of a kind that the method cannot adapt. Nothing is changed.
        """
        if f"{self.prefix}shared" not in self._modules:
            setattr(self, f"{self.prefix}shared", nn.ModuleDict())
        config = self._prepare_adapter_config(self.peft_config[adapter_name], self.get_model_config(model))
        if getattr(config, "released", False) and not config.inference_mode:
            raise HimalayaError(INFERENCE_ONLY)
        config = _maybe_include_all_linear_layers(config, model)
        found = {name: one for name, one in model.named_modules() if self._check_target_module_exists(config, name)}
        targets = [one.get_base_layer() if isinstance(one, self.tuner_layer_cls) else one for one in found.values()]
        for name, base in zip(found, targets, strict=True):
            self._check_target(base, config, name)
        others = [(parameter, parameter.requires_grad) for parameter in self._shared.parameters()]
        with torch.device("cpu"):
            if targets:
                shared = self._new_shared_state(config, targets, model)
                device = next(targets[0].parameters()).device
                if not any(tensor.is_meta for tensor in shared.state_dict().values()) and device.type != "meta":
                    shared.to(device)
                self._shared[adapter_name] = shared
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        for parameter, requires_grad in others:  # PEFT restores this for what lies within the model only
            parameter.requires_grad = requires_grad

    def _add_adapter(self, layer: Any, name: str, config: PeftConfig) -> None:
        layer.shared[name] = self._shared[name]
        super()._add_adapter(layer, name, config)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its shared state."""
        super().delete_adapter(adapter_name)
        del self._shared[adapter_name]

    # Files -----------------------------------------------------------------------------------------------------

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        shared = f"{cls.prefix}shared."
        if shared in key:
            return key.replace(f"{shared}{adapter_name}.", shared, 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        entries = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        found = cls._find_shared(model, adapter_name)
        if found is None or not getattr(config, "released", False):
            return entries
        prefix, shared = found
        packed = shared.packed
        if packed is None:
            names = {key: cls._remove_adapter_name_from_key(key, adapter_name) for key in entries}
            packed = seal(cls._pack({cls._inside(names[key]): one for key, one in entries.items()}, config), config)
        return prefixed(prefix, packed)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        found = cls._find_shared(model, adapter_name)
        if found is None:
            return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        there = model.state_dict()
        keys = _filter_state_dict_by_key_prefixes(there, _get_tuner_state_dict_key_prefixes(model, adapter_name))
        place = {cls._inside(cls._remove_adapter_name_from_key(key, adapter_name)): key for key in keys}
        own_keys = [key for key in state_dict if cls._inside(key) != key or key in place]
        own = {cls._inside(key): state_dict[key] for key in own_keys}
        others = {key: one for key, one in state_dict.items() if key not in own_keys}
        others = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, others)
        check_layout(others, {key: there[key] for key in others if key in there})
        state, content = {name: there[key] for name, key in place.items()}, own
        released = has_release(config) and config.released
        if released:
            layout = cls._pack({name: tensor.to("meta") for name, tensor in state.items()}, config)
            check_layout(own, {**layout, CHECKSUM: torch.empty(32, dtype=torch.uint8, device="meta")})
            content = state | cls._unpack(unseal(own, config), config, state)
        else:
            content = own = cls.fitting(own, state)
            check_layout(own, state)
            check_finite(own, cls.finite_values)
        # What a file leaves out becomes zero where it was never made.
        device = next((one.device for one in own.values() if not one.is_meta), "cpu")
        content = {k: torch.zeros_like(one, device=device) if one.is_meta else one for k, one in content.items()}
        content = {name: tensor.to(state[name].dtype) for name, tensor in content.items()}
        _, shared = found
        shared.check_replacement(content)
        shared.packed = own if released else None
        return others | {place[name]: tensor for name, tensor in content.items()}

    @classmethod
    def fitting(cls, found: Tensors, state: Tensors) -> dict[str, Tensor]:
        """A file's tensors without what this adapter need not hold, and with its own where the file holds none of it.

        Args:
            found: The file's, by their names inside the adapter.
            state: The adapter's.
        """
        optional = cls.may_be_left_out
        fitting = {name: one for name, one in found.items() if name in state or not name.startswith(optional)}
        if not any(name.startswith(optional) for name in fitting):
            fitting |= {name: one for name, one in state.items() if name.startswith(optional)}
        return fitting

    @classmethod
    def _inside(cls, key: str) -> str:
        """The name inside the adapter of what a file calls ``key``; what layers own keeps its name."""
        _, shared, name = key.partition(f"{cls.prefix}shared.")
        return name if shared else key

    @classmethod
    def _find_shared(cls, model: nn.Module, adapter_name: str) -> tuple[str, SharedState] | None:
        """The adapter's shared state and the prefix of its keys; none where only layers were injected into a model."""
        for name, module in model.named_modules():
            if isinstance(module, SharedState) and name.endswith(f"{cls.prefix}shared.{adapter_name}"):
                return f"{name}.", module
        return None
