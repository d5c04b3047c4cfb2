"""Configuration of LoReFT as a PEFT method."""

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType


@dataclass
class LoReftConfig(PeftConfig):
    """
    Configuration of a [`LoReftModel`], which edits the hidden states after decoder layers in a subspace of rank `r`.

    Args:
        r (`int`):
            Dimensions of the edited subspace. A layer costs `r * (2 * width + 1)` parameters. The paper uses 1 to 8.
            Start from 8.
        first_positions (`int`, *optional*):
            Edit only the first so many tokens of a text, those whose `position_ids` are below it; by default all
            tokens. The paper edits the first and the last tokens of the *prompt*. Where a prompt ends cannot be seen
            from a model's inputs: a pass in training holds prompt and answer, a pass of generation without a cache
            holds the prompt and what has been generated so far. So the last positions are not on offer: which tokens
            are edited must not depend on how a text is fed to the model.
        target_modules (`list[str] | str`, *optional*):
            The modules whose output is edited: one regular expression that ends in the layer's number, or names. By
            default all decoder layers.
        exclude_modules (`list[str] | str`, *optional*): Modules not to adapt although `target_modules` matches them.
        layers_to_transform (`list[int] | int`, *optional*): Adapt only the layers with these numbers.
        layers_pattern (`list[str] | str`, *optional*): Name of the layer list, if `target_modules` are names.
        modules_to_save (`list[str]`, *optional*): Further modules to train and save whole.
        init_weights (`bool`):
            `True`: W starts as R, so a fresh adapter is an exact no-op. `False`: W and b start at random, as in the
            paper.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    r: int = field(default=8, metadata={"help": "Dimensions of the edited subspace."})
    first_positions: int | None = field(
        default=None, metadata={"help": "Edit only the first so many tokens of a text; all by default."}
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules whose output is edited; by default all decoder layers."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules not to adapt."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only the layers with these numbers."}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layer list."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and save whole."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.LOREFT
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`, the indices to pick from that list")
        if self.r < 1:
            raise ValueError(f"r={self.r} must be at least 1")
        if self.first_positions is not None and self.first_positions < 1:
            raise ValueError(f"first_positions={self.first_positions} must be at least 1, or null for all tokens")
