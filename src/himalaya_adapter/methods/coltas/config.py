"""Configuration of COLTAS as a PEFT method."""

from dataclasses import dataclass

from peft import PeftType

from himalaya_adapter.methods.targets import TargetsConfig


@dataclass
class ColtasConfig(TargetsConfig):
    """
    Configuration of a [`ColtasModel`]. Beside the fields of [`TargetsConfig`]:

    Args:
        components (`int`):
            Rank of the low-rank adapter that all tasks share; a multiple of `mask_atoms`. More leave tasks more apart,
            and cost storage in proportion. Start from 32.
        mask_atoms (`int`): Masks in the dictionary, each of `components / mask_atoms` components. Start from 16.
        atoms_per_task (`int`):
            Masks whose union is a task's mask: its rank is `atoms_per_task * components / mask_atoms`. More learn a
            task better and share more of it with others. Start from 4.
    """

    components: int = 32
    mask_atoms: int = 16
    atoms_per_task: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.COLTAS
        if self.components % self.mask_atoms:
            raise ValueError(f"components={self.components} is not a multiple of mask_atoms={self.mask_atoms}")
        if self.atoms_per_task > self.mask_atoms:
            raise ValueError(f"atoms_per_task={self.atoms_per_task} exceeds mask_atoms={self.mask_atoms}")
