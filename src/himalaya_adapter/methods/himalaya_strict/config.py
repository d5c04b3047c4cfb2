"""Configuration of the original experiment plan's method as a PEFT method."""

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftType

from himalaya_adapter.methods.quantization import ReleaseBits
from himalaya_adapter.methods.targets import TargetsConfig, refuse_newer

# Version of the adapter files that this code writes, and the newest that it reads. Releases of version 1, with all
# atoms in the same bits, do not fit.
FORMAT_VERSION = 2
LARGEST = 100.0  # of a temperature or of the atoms' step; far beyond what does any good


@dataclass
class HimalayaStrictConfig(TargetsConfig):
    """
    Configuration of a [`HimalayaStrictModel`]: one adapter, shared by all layers and all tasks, of constant size.
    Beside the fields of [`TargetsConfig`]:

    Args:
        target_modules (`list[str] | str`, *optional*):
            With `placement="residual_stream"` modules that read the normalised residual stream and whose output is
            added to it (default: each layer's MLP); with `placement="weights"` linear modules. More targets cost
            time, never storage.
        placement (`"residual_stream" | "weights"`):
            Where the rank-one update acts. On the residual stream it adds `gain * r (r . x)` once per layer, the
            weight being the skip path's identity; it learns far more than the other placement on decoder models. On
            the weights of linear modules it is the plan's formula. Start from the default.
        norm_target (`"update" | "residual"`):
            `update`: the update's norm is `|gain| <= 1`. `residual`: `r` has norm 1 and the update norm
            `|gain| / sqrt(width)`, the plan's other reading, which learns little. Start from the default.
        gain (`"learned" | "fixed"`):
            `learned`: the router outputs a signed gain in (-1, 1) per token, 0 at the start. `fixed`: the gain is 1,
            as in the plan; the fresh adapter is then not a no-op.
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
        atom_step (`float`):
            How many times the optimiser's step the atoms move, whatever the learning rate: the head needs smaller
            steps than they do. Start from 1.0; 2.0 learns classifications of few examples faster.
        protect (`bool`):
            Keep earlier tasks: project steps of the head off past features and steps of the atoms off past
            gradients. `False` learns a little more and forgets.
        evict (`bool`):
            Where no slot is free, a new task takes the atom that earlier ones miss least. `False`: it learns with the
            atoms that are there, which it does less well, and nothing is forgotten.
        index (`"learnable_kd_tree" | "scan"`):
            How elastic atoms are found: through a tree whose thresholds are trained and whose soft membership is
            added to the gates, or by looking at all of them.
        fanout (`int`): Children of a node of the tree: 4, 8 or 16.
        leaf_size (`int`): Most atoms of a leaf of the tree.
        grow (`bool`): Promote residuals that no atom points to, also inside a task.
        similarity_threshold_tau (`float`):
            Growth happens when the residuals' mean cosine with their closest atom falls below this, in (0, 1].
            Higher promotes more often. Start from 0.8.
        growth_window (`int`): Steps over which that mean is taken; after a promotion it starts anew.
        consolidate (`bool`): Before an atom is overwritten, let the remaining ones stand in for it.
        fisher_projection_steps (`int`): Conjugate-gradient steps of that projection.
        quantisation_bits (`int`): Bits of an atom's entry in a release file: 2 to 8, or 16 for half precision.
        released (`bool`): Whether the file is a release: packed, for inference only. Set by `save_release`.
        format_version (`int`): Version of the adapter file; a newer one than this code's is refused.
        seed (`int`): Seed of the dictionary and of the router's start.

    Raises:
        ValueError: If a value is outside the range named above; the message names field, value and range.
    """

    placement: Literal["residual_stream", "weights"] = "residual_stream"
    norm_target: Literal["update", "residual"] = "update"
    gain: Literal["learned", "fixed"] = "learned"
    core_atoms: int = 24
    elastic_atoms: int = 16
    hidden_params: int = 45_000
    code_width: int = 32
    expected_active_atoms: int = 3
    atoms_per_task: int = 3
    temperature_init: float = field(default=1.0, metadata={"most": LARGEST})
    atom_step: float = field(default=1.0, metadata={"most": LARGEST})
    protect: bool = True
    evict: bool = True
    index: Literal["learnable_kd_tree", "scan"] = "learnable_kd_tree"
    fanout: Literal[4, 8, 16] = 8
    leaf_size: int = 4
    grow: bool = True
    similarity_threshold_tau: float = field(default=0.8, metadata={"most": 1.0})
    growth_window: int = 200
    consolidate: bool = True
    fisher_projection_steps: int = 20
    quantisation_bits: ReleaseBits = 3
    released: bool = False
    format_version: int = FORMAT_VERSION
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.HIMALAYA_STRICT
        if self.atoms_per_task > self.elastic_atoms:
            raise ValueError(f"atoms_per_task={self.atoms_per_task} exceeds elastic_atoms={self.elastic_atoms}")
        refuse_newer(self.format_version, FORMAT_VERSION)
        self.format_version = FORMAT_VERSION  # files that can be trained on have not changed
