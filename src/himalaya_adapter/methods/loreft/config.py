"""Configuration of LoReFT as a PEFT method."""

from dataclasses import dataclass

from peft import PeftType

from himalaya_adapter.methods.targets import TargetsConfig


@dataclass
class LoReftConfig(TargetsConfig):
    """
    Configuration of a [`LoReftModel`], which edits the hidden states after decoder layers in a subspace of rank `r`.
    Beside the fields of [`TargetsConfig`]:

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
        init_weights (`bool`):
            `True`: W starts as R, so a fresh adapter is an exact no-op. `False`: W and b start at random, as in the
            paper.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    r: int = 8
    first_positions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.LOREFT
        if self.first_positions is not None and self.first_positions < 1:
            raise ValueError(f"first_positions={self.first_positions} must be at least 1, or null for all tokens")
