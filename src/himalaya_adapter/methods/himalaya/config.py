"""Configuration of HIMALAYA as a PEFT method."""

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftType

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.quantization import Bits
from himalaya_adapter.methods.targets import TargetsConfig

MOST_ACTIVE_ATOMS = 3
LARGEST_BOUND = 2.0
MOST_ATOMS = 2**15
# Version of the adapter files that this code writes and reads. Those of 0.1 had versions 1 and 2.
FORMAT_VERSION = 3
WRITTEN_BY_0_1 = (
    "this adapter was written by himalaya-adapter 0.1, whose update was another one: load it with "
    "himalaya-adapter 0.1, or learn its tasks again"
)


@dataclass
class HimalayaConfig(TargetsConfig):
    """
    Configuration of a [`HimalayaModel`]: one adapter for all layers and all tasks, of constant size.
    Beside the fields of [`TargetsConfig`]:

    Args:
        target_modules (`list[str] | str`, *optional*):
            With `placement="residual_stream"` the modules whose output is edited (default: all decoder layers); with
            `placement="weights"` linear modules (default: all of them but the output layer).
        placement (`"residual_stream" | "weights"`):
            `residual_stream`: a rank-one update after each decoder layer; it learns most. `weights`: an update of
            linear modules that is exactly a LoRA, so that it can be merged or exported. Both have the same number of
            trained numbers.
        rank (`int`): Rank of the update with `placement="weights"`. It costs time, no storage.
        core_atoms (`int`): Frozen orthonormal atoms, of which the layers' anchors are made. Start from 24.
        elastic_atoms (`int`):
            Slots for the atoms that tasks learn. The file grows with it, and not with the tasks.
        atoms_per_task (`int`):
            Atoms that a task learns. More learn more, and take more room. Start from 12; 3 is the smallest useful.
        active_atoms (`int`): Atoms of a task that act in one layer, at most 3.
        norm_bound (`float`):
            Largest norm of a layer's update, above 0 and at most 2. 1 is the original plan's bound; with 2 an update
            can take a direction away or mirror it.
        max_tasks (`int`): Rows of the table of tasks. A row takes a few hundred bytes.
        evict (`bool`):
            Where no slot is free, a new task takes the least-used one. What it held lives on as a combination of other
            atoms, which loses part of it. `False`: a task that does not fit is refused, and nothing is ever forgotten.
        similarity_threshold_tau (`float`):
            A learnt atom whose cosine with an atom of the dictionary is at least this shares that atom's slot.
            In (0, 1]; lower shares more often, and less exactly.
        index (`"learnable_kd_tree" | "scan"`): How the nearest atom is found; the answer is the same.
        fanout (`int`): Children of a node of the tree: 4, 8 or 16.
        leaf_size (`int`): Most atoms of a leaf of the tree.
        fisher_projection_steps (`int`): Most conjugate-gradient steps of a consolidation.
        quantisation_bits (`int`): Bits of a stored atom's entry, 2 to 8. A task is scored as it is stored.
        seed (`int`): Seed of the core, the anchors and the codes of the layers.
        layers (`int`, *optional*): Number of adapted modules. Set when the adapter is attached, and checked then.
        released (`bool`): Whether the file is a release, for inference only. Set by `save_release`.
        format_version (`int`): Version of the adapter file.

    Raises:
        ValueError: If a value is outside the range named above; the message names field, value and range.
    """

    placement: Literal["residual_stream", "weights"] = field(
        default="residual_stream", metadata={"help": "After decoder layers, or in the weights of linear modules."}
    )
    rank: int = field(default=1, metadata={"help": "Rank of the update of a weight."})
    core_atoms: int = field(default=24, metadata={"help": "Number of frozen atoms."})
    elastic_atoms: int = field(default=768, metadata={"help": "Slots for atoms that tasks learn."})
    atoms_per_task: int = field(default=12, metadata={"help": "Atoms that a task learns."})
    active_atoms: int = field(default=3, metadata={"help": "Atoms of a task that act in one layer, at most 3."})
    norm_bound: float = field(default=2.0, metadata={"help": "Largest norm of a layer's update, at most 2."})
    max_tasks: int = field(default=64, metadata={"help": "Rows of the table of tasks."})
    evict: bool = field(default=False, metadata={"help": "Take the least-used slot where none is free."})
    similarity_threshold_tau: float = field(
        default=0.98, metadata={"help": "Cosine from which a learnt atom shares the slot of another."}
    )
    index: Literal["learnable_kd_tree", "scan"] = field(
        default="learnable_kd_tree", metadata={"help": "How the nearest atom is found."}
    )
    fanout: Literal[4, 8, 16] = field(default=8, metadata={"help": "Children of a node of the tree: 4, 8 or 16."})
    leaf_size: int = field(default=4, metadata={"help": "Most atoms of a leaf of the tree."})
    fisher_projection_steps: int = field(default=20, metadata={"help": "Steps of a consolidation."})
    quantisation_bits: Bits = field(default=3, metadata={"help": "Bits of a stored atom's entry: 2 to 8."})
    seed: int = field(default=0, metadata={"help": "Seed of core, anchors and codes."})
    layers: int | None = field(default=None, metadata={"help": "Number of adapted modules, set on attaching."})
    released: bool = field(default=False, metadata={"help": "Whether the file is a release."})
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the adapter file."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.HIMALAYA
        if self.format_version < FORMAT_VERSION:
            raise HimalayaError(WRITTEN_BY_0_1)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version={self.format_version} is newer than {FORMAT_VERSION}, the newest that this "
                "himalaya-adapter reads: update it"
            )
        if self.active_atoms > min(MOST_ACTIVE_ATOMS, self.atoms_per_task):
            most = min(MOST_ACTIVE_ATOMS, self.atoms_per_task)
            raise ValueError(f"active_atoms={self.active_atoms} must be at most {most}: 3, and atoms_per_task")
        if self.elastic_atoms < self.atoms_per_task:
            raise ValueError(
                f"elastic_atoms={self.elastic_atoms} must be at least atoms_per_task={self.atoms_per_task}: "
                "one task needs so many slots"
            )
        if self.core_atoms + self.elastic_atoms > MOST_ATOMS:
            raise ValueError(
                f"core_atoms={self.core_atoms} and elastic_atoms={self.elastic_atoms} must be at most {MOST_ATOMS} "
                "together: the table of tasks numbers atoms in 16 bits"
            )
        if not 0 < self.norm_bound <= LARGEST_BOUND:
            raise ValueError(f"norm_bound={self.norm_bound} must be above 0 and at most {LARGEST_BOUND}")
        if not 0 < self.similarity_threshold_tau <= 1:
            raise ValueError(f"similarity_threshold_tau={self.similarity_threshold_tau} must be in (0, 1]")

    @classmethod
    def from_peft_type(cls, **options: Any) -> "HimalayaConfig":
        """As PEFT's, for files.

        Raises:
            HimalayaError: The file is one of version 0.1.
        """
        if options.get("peft_type") == "HIMALAYA" and options.get("format_version", 0) < FORMAT_VERSION:
            raise HimalayaError(WRITTEN_BY_0_1)
        return super().from_peft_type(**options)
