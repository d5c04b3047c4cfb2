"""Configuration of GloDiS-64 as a PEFT method."""

from dataclasses import dataclass

from peft import PeftType

from himalaya_adapter.methods.targets import TargetsConfig


@dataclass
class GlodisConfig(TargetsConfig):
    """
    Configuration of a [`GlodisModel`]. Beside the fields of [`TargetsConfig`]:

    Args:
        dictionary_size (`int`):
            Rank-one atoms that all layers share. More learn more, and cost all of the storage and most of the time.
            64 gives the method its name.
    """

    dictionary_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.GLODIS
