"""Configuration of HIMALAYA as a PEFT method."""

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftType

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.quantization import Bits
from himalaya_adapter.methods.targets import TargetsConfig, refuse_newer

MOST_ACTIVE_ATOMS = 3
MOST_ATOMS = 2**15
# Version of the adapter files that this code writes. Version 3, with a Fisher memory where nothing is evicted, can be
# read too; those of 0.1 had versions 1 and 2.
FORMAT_VERSION = 4

Placement = Literal["residual_stream", "weights"]


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
            Atoms that a task learns. More learn more, and take more room. Start from 24, which learn as much as LoReFT
            of rank 1; 12 learn almost as much, and 3 is the smallest useful.
        active_atoms (`int`): Atoms of a task that act in one layer, at most 3.
        norm_bound (`float`):
            Largest norm of a layer's update, above 0 and at most 2, with `placement="residual_stream"`. 1 is the
            original plan's bound; with 2 an update can take a direction away or mirror it.
        max_tasks (`int`): Rows of the table of tasks. A row takes a few hundred bytes.
        evict (`bool`):
            Where no slot is free, a new task takes the least-used one. What it held lives on as a combination of other
            atoms, which loses part of it. For that, 128 gradients and the importance of each slot are stored, too.
            `False`: a task that does not fit is refused, and nothing is ever forgotten.
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

    placement: Placement = "residual_stream"
    rank: int = 1
    core_atoms: int = 24
    elastic_atoms: int = field(default=912, metadata={"at_first": 768})
    atoms_per_task: int = field(default=24, metadata={"at_first": 12})
    active_atoms: int = 3
    norm_bound: float = field(default=2.0, metadata={"most": 2.0})
    max_tasks: int = field(default=38, metadata={"at_first": 64})
    evict: bool = False
    similarity_threshold_tau: float = field(default=0.98, metadata={"most": 1.0})
    index: Literal["learnable_kd_tree", "scan"] = "learnable_kd_tree"
    fanout: Literal[4, 8, 16] = 8
    leaf_size: int = 4
    fisher_projection_steps: int = 20
    quantisation_bits: Bits = 3
    seed: int = 0
    layers: int | None = None
    released: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version < 3:
            raise HimalayaError(
                "this adapter was written by himalaya-adapter 0.1, whose update was another one: load it with "
                "himalaya-adapter 0.1, or learn its tasks again"
            )
        refuse_newer(self.format_version, FORMAT_VERSION)
        self.format_version = FORMAT_VERSION
        super().__post_init__()
        self.peft_type = PeftType.HIMALAYA
        for name, most, what in (
            ("active_atoms", min(MOST_ACTIVE_ATOMS, self.atoms_per_task), "3, and atoms_per_task"),
            ("atoms_per_task", self.elastic_atoms, f"the slots, elastic_atoms={self.elastic_atoms}"),
            ("elastic_atoms", MOST_ATOMS - self.core_atoms, "with core_atoms, what 16 bits can number"),
        ):
            if getattr(self, name) > most:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {most}: {what}")
        unused = "norm_bound" if self.placement == "weights" else "rank"
        if getattr(self, unused) != getattr(type(self), unused):
            raise ValueError(f"{unused}={getattr(self, unused)} has no effect with placement='{self.placement}'")
