"""Configuration of HIMALAYA as a PEFT method."""

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig, PeftType

PLACEMENTS = ("residual_stream", "weights")
NORM_TARGETS = ("update", "residual")
GAINS = ("learned", "fixed")


@dataclass
class HimalayaConfig(PeftConfig):
    """
    Configuration of a [`HimalayaModel`]: one adapter, shared by all layers and all tasks, of constant size.

    Args:
        target_modules (`list[str] | str`, *optional*):
            The modules to adapt: names, name endings or one regular expression. With `placement="residual_stream"`
            modules that read the normalised residual stream and whose output is added to it (default: each layer's
            MLP); with `placement="weights"` linear modules. More targets cost time, never storage.
        exclude_modules (`list[str] | str`, *optional*): Modules not to adapt although `target_modules` matches them.
        layers_to_transform (`list[int] | int`, *optional*): Adapt only these layer indices.
        layers_pattern (`list[str] | str`, *optional*): Name of the layer list, if it is not a common one.
        modules_to_save (`list[str]`, *optional*): Further modules to train and save whole, such as a new classifier.
        placement (`"residual_stream" | "weights"`):
            Where the rank-one update acts. On the residual stream it adds `gain * r (r . x)` once per layer, the
            weight being the skip path's identity; it learns far more than the other placement on decoder models. On
            the weights of linear modules it is the source's formula. Start from the default.
        norm_target (`"update" | "residual"`):
            `update`: the update's norm is `|gain| <= 1`. `residual`: `r` has norm 1 and the update norm
            `|gain| / sqrt(width)`, the source's other reading, which learns little. Start from the default.
        gain (`"learned" | "fixed"`):
            `learned`: the router outputs a signed gain in (-1, 1) per token, 0 at the start. `fixed`: the gain is 1,
            the source's letter; the fresh adapter is then not a no-op.
        core_atoms (`int`): Frozen orthonormal atoms. They cost storage, no training memory. Start from 24.
        elastic_atoms (`int`): Trained atoms, where most of the learning happens. Start from 16.
        hidden_params (`int`):
            Most parameters the router may have (latent projection and head together); sets the latent width.
        code_width (`int`):
            Width of a task's code. Tasks beyond about this number share head directions; larger leaves fewer latent
            dimensions within `hidden_params`. Start from 32.
        atoms_per_task (`int`):
            Elastic atoms that a task may move. More learn a task better (up to `expected_active_atoms`); when
            `elastic_atoms / atoms_per_task` tasks have been learnt, further ones must reuse atoms. Start from 3.
        expected_active_atoms (`int`): Most atoms a token may use, in expectation (gates) and in fact (top-k).
        temperature_init (`float`):
            Temperature of the relaxed gates at the start of a task; annealed linearly to a tenth of it. Higher
            explores more atoms, learns slower. Start from 1.0.
        protect (`bool`):
            Keep earlier tasks: project steps of the head off past features and steps of the atoms off past
            gradients. `False` learns a little more and forgets.
        seed (`int`): Seed of the dictionary and of the router's start.
        init_weights (`bool`):
            `True`: a fresh adapter is an exact no-op. `False`: the gain starts at random, for tests only.

    Raises:
        ValueError: If a value is outside the range named above; the message names field, value and range.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt: names, name endings or one regular expression."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules not to adapt."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only these layer indices."}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layer list."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and save whole."}
    )
    placement: Literal["residual_stream", "weights"] = field(
        default="residual_stream", metadata={"help": "Where the rank-one update acts."}
    )
    norm_target: Literal["update", "residual"] = field(
        default="update", metadata={"help": "What has norm 1: the update, or r (update norm 1/sqrt(width))."}
    )
    gain: Literal["learned", "fixed"] = field(
        default="learned", metadata={"help": "A signed gain in (-1, 1) per token, or always 1."}
    )
    core_atoms: int = field(default=24, metadata={"help": "Number of frozen atoms."})
    elastic_atoms: int = field(default=16, metadata={"help": "Number of trained atoms."})
    hidden_params: int = field(default=45_000, metadata={"help": "Most parameters of the router."})
    code_width: int = field(default=32, metadata={"help": "Width of a task's code."})
    expected_active_atoms: int = field(default=3, metadata={"help": "Most atoms a token may use."})
    atoms_per_task: int = field(default=3, metadata={"help": "Elastic atoms that a task may move."})
    temperature_init: float = field(default=1.0, metadata={"help": "Gate temperature at the start of a task."})
    protect: bool = field(default=True, metadata={"help": "Keep earlier tasks by projecting the steps."})
    seed: int = field(default=0, metadata={"help": "Seed of the dictionary and the router."})
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.HIMALAYA
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`, the indices to pick from that list")
        for name, allowed in (("placement", PLACEMENTS), ("norm_target", NORM_TARGETS), ("gain", GAINS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("core_atoms", "elastic_atoms", "code_width", "atoms_per_task", "expected_active_atoms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.atoms_per_task > self.elastic_atoms:
            raise ValueError(f"atoms_per_task={self.atoms_per_task} exceeds elastic_atoms={self.elastic_atoms}")
        if self.temperature_init <= 0:
            raise ValueError(f"temperature_init={self.temperature_init} must be above 0")
