"""The modules that a method adapts: how a configuration names them, and how a layer takes the place of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import nn

from himalaya_adapter.backbones.catalogue import name_of, place_of
from himalaya_adapter.errors import HimalayaError

from .continual import ContinualModel


@dataclass
class TargetsConfig(PeftConfig):
    """What the configurations of all methods share. A whole number other than a seed is at least 1.

    On disk, a backbone of the catalogue is called by its name, and in memory by the folder where it lies here: so no
    file tells a path of the machine it was made on, and PEFT finds the backbone wherever there is one.

    A number whose field says in its metadata what ``most`` it may be is above 0.

    Args:
        target_modules (`list[str] | str`, *optional*):
            The modules to adapt: names, name endings or one regular expression. By default those that the method's
            model names (`target_module_mapping`).
        exclude_modules (`list[str] | str`, *optional*): Modules not to adapt although `target_modules` matches them.
        layers_to_transform (`list[int] | int`, *optional*): Adapt only these layer indices.
        layers_pattern (`list[str] | str`, *optional*): Name of the layer list, if it is not a common one.
        modules_to_save (`list[str]`, *optional*): Further modules to train and save whole, such as a new classifier.
        init_weights (`bool`):
            `True`: a fresh adapter is an exact no-op. `False`: it does something random, for tests only.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        backbone: str | None = vars(self)["base_model_name_or_path"]
        self.base_model_name_or_path = backbone if backbone is None else place_of(backbone)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`, the indices to pick from that list")
        hints = get_type_hints(type(self))
        for one in fields(self):
            name, hint, value, most = one.name, hints[one.name], getattr(self, one.name), one.metadata.get("most")
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(str, get_args(hint)))}")
            if hint is int and name != "seed" and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
            if most is not None and not 0 < value <= most:
                raise ValueError(f"{name}={value} must be above 0 and at most {most}")

    def to_dict(self) -> dict[str, Any]:
        """As it is written to a file."""
        place = self.base_model_name_or_path
        return {**super().to_dict(), "base_model_name_or_path": place if place is None else name_of(place)}


def refuse_newer(format_version: int, newest: int) -> None:
    """Make sure that an adapter's file is of a version that this code reads.

    Raises:
        ValueError: It is newer.
    """
    if format_version > newest:
        raise ValueError(
            f"format_version={format_version} is newer than {newest}, the newest that this himalaya-adapter reads: "
            "update it"
        )


class TargetLayer(nn.Module, BaseTunerLayer):
    """What takes the place of a target, ``base_layer``."""

    adapter_layer_names: tuple[str, ...] = ("shared",)

    if TYPE_CHECKING:  # what PEFT's mix-in brings has no types

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module, **_: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        # What a `SharedStateModel` puts in. Plain, so that torch does not register shared modules once per layer.
        self.shared: dict[str, Any] = {}


class TargetsModel(ContinualModel, BaseTuner):
    """A PEFT tuner that puts one layer in the place of each target and gives it every adapter that targets it."""

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        # PEFT looks for a layer's number only where a target is named by the end of its name.
        found = BaseTuner._check_target_module_exists(peft_config, key)
        names, wanted = peft_config.target_modules, peft_config.layers_to_transform
        if not found or wanted is None or not (isinstance(names, str) or key in names):
            return found
        number = next((int(part) for part in key.split(".") if part.isdecimal()), None)
        if number is None and not isinstance(names, str):
            return found  # a module outside of the layers, by its whole name
        return number in ([wanted] if isinstance(wanted, int) else wanted)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise HimalayaError(
                f"adapter_names: {self.prefix.rstrip('_').upper()} answers a whole batch with the active adapters; "
                "for rows of different tasks HIMALAYA has model.set_task([...]), a name for each row"
            )
        yield

    def _check_target(self, base: nn.Module, config: PeftConfig, key: str) -> None:
        """Refuse a module that the method cannot adapt.

        Raises:
            TypeError: The module named ``key`` is of the wrong kind.
        """

    def _new_layer(self, base: nn.Module, config: PeftConfig) -> Any:
        return self.tuner_layer_cls(base, **get_quantization_kwargs(self))

    def _add_adapter(self, layer: Any, name: str, config: PeftConfig) -> None:
        """Give a layer its part of a new adapter."""

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
        layer: Any = target if isinstance(target, self.tuner_layer_cls) else None
        base = target if layer is None else layer.get_base_layer()
        self._check_target(base, peft_config, current_key)
        if layer is None:
            layer = self._new_layer(base, peft_config)
            self._replace_module(parent, target_name, layer, base)
        self._add_adapter(layer, adapter_name, peft_config)
        layer.set_adapter(self.active_adapters)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version copies `weight` from the wrapped module, which an MLP or a decoder layer does not have.
        setattr(parent, child_name, new_module)
