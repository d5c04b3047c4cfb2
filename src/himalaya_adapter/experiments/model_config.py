"""The part of a run config that says what is adapted, and with what."""

from dataclasses import dataclass, field
from typing import Any, Literal

from himalaya_adapter.experiments.schema import Number, Positive, Section, Switch, Whole


@dataclass
class BackboneConfig(Section):
    """The frozen language model."""

    name: str
    """A name of the catalogue (``smollm2-135m``), a folder, or a hub id."""
    quantisation: Literal["4-bit", "4-bit QLoRA"] | None = None
    """``null``, ``4-bit`` or ``4-bit QLoRA``, which mean the same NF4 loading."""
    frozen: Switch = True
    """Always true: only the adapter is trained."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``."""


# Most keys below belong to one method; `registry` says to which, and which of its options each sets. ``null``
# leaves the method's own default.


@dataclass
class CoreDictionaryConfig(Section):
    """The frozen atoms."""

    num_atoms: Whole | None = None
    """How many."""
    init: str | None = None
    """``isotropic``."""


@dataclass
class ElasticDictionaryConfig(Section):
    """The atoms that are trained."""

    max_atoms: Whole | None = None
    """How many slots there are; never more or fewer."""
    index: str | None = None
    """``learnable_kd_tree`` or ``scan``."""
    quantisation_bits: Whole | None = None
    """Bits of a stored atom's entry; in HIMALAYA_STRICT of one in a release file."""


@dataclass
class RouterConfig(Section):
    """The hyper-router."""

    hidden_params: Whole | None = None
    """Most parameters that HIMALAYA_STRICT's may have."""
    expected_active_atoms: Whole | None = None
    """Most atoms of a token."""
    temperature_init: Number | None = None
    """Temperature of HIMALAYA_STRICT's gates at the start of a task."""


@dataclass
class KDTreeConfig(Section):
    """The index over the elastic atoms."""

    fanout: Whole | None = None
    """Children of a node: 4, 8 or 16."""
    leaf_size: Whole | None = None
    """Most atoms of a leaf."""


@dataclass
class AdapterConfig(Section):
    """The adapter: its method and the options of that method's PEFT config."""

    type: str
    """``HIMALAYA``; the original plan's method (``HIMALAYA_STRICT``, also meant by ``HIMALAYA`` with a key that only
    it has); a rival (``LILAC``, ``COLTAS``, ``GLODIS``, ``LOREFT``, ``O_LORA``); or any PEFT method (``LORA``)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's PEFT config that differ from its defaults."""
    per_task: Switch = False
    """Learn and keep an adapter of its own for each task. All of them count as stored."""
    bits: Literal[3, 4, 8, 16] | None = None
    """Bits of a trained number in which the adapter is stored, and scored, for methods that have no such option of
    their own; ``null``: 32."""
    total_parameter_budget_mb: Positive | None = None
    """The run refuses to start if the saved adapter would be larger (MB of 10^6 bytes)."""
    core_dictionary: CoreDictionaryConfig = field(default_factory=CoreDictionaryConfig)
    """HIMALAYA's frozen atoms."""
    elastic_dictionary: ElasticDictionaryConfig = field(default_factory=ElasticDictionaryConfig)
    """HIMALAYA's trained atoms."""
    router: RouterConfig = field(default_factory=RouterConfig)
    """HIMALAYA's router."""
    coeff_precision_bits: Whole | None = None
    """Bits of a coefficient that HIMALAYA stores: 8."""
    lora_rank: Whole | None = None
    """Rank of LILAC's updates."""
    dictionary_size: Whole | None = None
    """Atoms of LILAC's dictionary."""
    quantisation_bits: Whole | None = None
    """Bits of a number in LILAC's release file."""
    ewc_lambda: Positive | None = None
    """Strength of online EWC (`OnlineEWC`), for methods that do not protect themselves; ``null``: none."""


@dataclass
class ModelConfig(Section):
    """Backbone and adapter."""

    backbone: BackboneConfig
    """The frozen model."""
    adapter: AdapterConfig
    """What is trained."""
    kd_tree: KDTreeConfig = field(default_factory=KDTreeConfig)
    """HIMALAYA's index."""
    norm_rescaling: Switch | None = None
    """Whether HIMALAYA's update is scaled to norm 1; always true."""
