"""One row for each method: all that is known of it outside of its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The run keys of HIMALAYA's and HIMALAYA_STRICT's dictionary.
DICTIONARY_OPTIONS = {
    "model.adapter.core_dictionary.num_atoms": "core_atoms",
    "model.adapter.elastic_dictionary.max_atoms": "elastic_atoms",
    "model.adapter.elastic_dictionary.index": "index",
    "model.adapter.elastic_dictionary.quantisation_bits": "quantisation_bits",
    "model.kd_tree.fanout": "fanout",
    "model.kd_tree.leaf_size": "leaf_size",
    "training.similarity_threshold_tau": "similarity_threshold_tau",
    "training.fisher_projection_steps": "fisher_projection_steps",
}
DICTIONARY_FIXED = {
    "model.adapter.core_dictionary.init": ("isotropic", "the core is orthonormal"),
    "model.adapter.coeff_precision_bits": (8, "coefficients are stored as int8"),
    "model.norm_rescaling": (True, "the bound on the update's norm rests on it"),
}


@dataclass(frozen=True)
class Method:
    """A method, as run configs, PEFT and reports know it.

    Args:
        type: Its `PeftType`, and ``model.adapter.type`` of a run.
        color: Its colour in all figures; ``None``: the first that is left.
        module: Where its config and its tuner are imported from; empty for a method of PEFT's own.
        config: Name of its config class there.
        tuner: Name of its tuner class there.
        protects_itself: Whether it keeps earlier tasks without EWC.
        options: The option of its config that each run key sets.
        fixed: Run keys with one possible value: the value, and why there is no other.
    """

    type: str
    color: str | None = None
    module: str = ""
    config: str = ""
    tuner: str = ""
    protects_itself: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, tuple[object, str]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The run keys that belong to it."""
        return {*self.options, *self.fixed}


HERE = f"{__package__}.methods."
# The first six colours are of the palette of Okabe and Ito (2008), told apart with any of the common colour
# deficiencies. Each further one is as far as possible (in CIELAB, at least 20) from all before it and from grey, as
# seen with normal vision and with any of the three deficiencies (Machado et al., 2009).
ROWS = (
    Method(
        *("HIMALAYA", "#0072B2", f"{HERE}himalaya", "HimalayaConfig", "HimalayaModel"),
        protects_itself=True,
        options=DICTIONARY_OPTIONS | {"model.adapter.router.expected_active_atoms": "active_atoms"},
        fixed=DICTIONARY_FIXED,
    ),
    Method("LORA", "#D55E00"),
    Method(
        *("LILAC", "#009E73", f"{HERE}lilac", "LilacConfig", "LilacModel"),
        options={
            "model.adapter.lora_rank": "lora_rank",
            "model.adapter.dictionary_size": "dictionary_size",
            "model.adapter.quantisation_bits": "quantisation_bits",
        },
    ),
    Method("COLTAS", "#CC79A7", f"{HERE}coltas", "ColtasConfig", "ColtasModel"),
    Method("GLODIS", "#C38700", f"{HERE}glodis", "GlodisConfig", "GlodisModel"),
    Method("LOREFT", "#4999C6", f"{HERE}loreft", "LoReftConfig", "LoReftModel"),
    Method("O_LORA", "#7A7A00", f"{HERE}olora", "OLoraConfig", "OLoraModel", protects_itself=True),
    Method("IA3", "#9D0AFF"),
    Method(
        *("HIMALAYA_STRICT", "#7253D0", f"{HERE}himalaya_strict", "HimalayaStrictConfig", "HimalayaStrictModel"),
        protects_itself=True,
        options=DICTIONARY_OPTIONS
        | {
            "model.adapter.router.hidden_params": "hidden_params",
            "model.adapter.router.expected_active_atoms": "expected_active_atoms",
            "model.adapter.router.temperature_init": "temperature_init",
        },
        fixed=DICTIONARY_FIXED
        | {"training.router_temperature_anneal": ("linear", "the gates' temperature falls linearly over a task")},
    ),
)
METHODS = {row.type: row for row in ROWS}


def method_row(name: str) -> Method:
    """The row of a method, in any case; of one that has none, what is true of most methods of PEFT."""
    return METHODS.get(name.upper(), Method(name.upper()))
