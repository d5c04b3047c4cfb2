"""Configuration of LILAC as a PEFT method."""

from dataclasses import dataclass

from peft import PeftType

from himalaya_adapter.methods.quantization import ReleaseBits
from himalaya_adapter.methods.targets import TargetsConfig


@dataclass
class LilacConfig(TargetsConfig):
    """
    Configuration of a [`LilacModel`]. Beside the fields of [`TargetsConfig`]:

    Args:
        lora_rank (`int`):
            Rank of each module's update. Costs `2 * lora_rank * dictionary_size` parameters per module. Start from 4.
        dictionary_size (`int`):
            Atoms of the dictionary that all layers share; each is as wide as the widest target. More let the layers
            differ more, and cost most of the storage. Start from 64.
        quantisation_bits (`int`): Bits of a number in a release file: 2 to 8, or 16 for half precision.
        released (`bool`): Whether the file is a release: packed, for inference only. Set by `save_release`.
    """

    lora_rank: int = 4
    dictionary_size: int = 64
    quantisation_bits: ReleaseBits = 8
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.LILAC
