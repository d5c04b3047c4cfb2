"""The part of a run config that says what is adapted, and with what."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class BackboneConfig:
    """The frozen language model.

    Args:
        name: A name of the catalogue (``smollm2-135m``), a folder, or a hub id.
        quantisation: ``null``, ``4-bit`` or ``4-bit QLoRA``, which mean the same NF4 loading.
        frozen: Always true: only the adapter is trained.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    """

    name: str = MISSING
    quantisation: str | None = None
    frozen: bool = True
    dtype: str = "auto"


# Most keys below belong to one method; `method_options` says to which, and which of its options each sets. ``null``
# leaves the method's own default.


@dataclass
class CoreDictionaryConfig:
    """The frozen atoms.

    Args:
        num_atoms: How many.
        init: ``isotropic``.
    """

    num_atoms: int | None = None
    init: str | None = None


@dataclass
class ElasticDictionaryConfig:
    """The atoms that are trained.

    Args:
        max_atoms: How many slots there are; never more or fewer.
        index: ``learnable_kd_tree`` or ``scan``.
        quantisation_bits: Bits of a stored atom's entry; in HIMALAYA_STRICT of one in a release file.
    """

    max_atoms: int | None = None
    index: str | None = None
    quantisation_bits: int | None = None


@dataclass
class RouterConfig:
    """The hyper-router.

    Args:
        hidden_params: Most parameters that HIMALAYA_STRICT's may have.
        expected_active_atoms: Most atoms of a token.
        temperature_init: Temperature of HIMALAYA_STRICT's gates at the start of a task.
    """

    hidden_params: int | None = None
    expected_active_atoms: int | None = None
    temperature_init: float | None = None


@dataclass
class KDTreeConfig:
    """The index over the elastic atoms.

    Args:
        fanout: Children of a node: 4, 8 or 16.
        leaf_size: Most atoms of a leaf.
    """

    fanout: int | None = None
    leaf_size: int | None = None


@dataclass
class AdapterConfig:
    """The adapter: its method and the options of that method's PEFT config.

    Args:
        type: ``HIMALAYA``, its source's letter (``HIMALAYA_STRICT``, which ``HIMALAYA`` with a key that only it has
            means too), a rival (``LILAC``, ``COLTAS``, ``GLODIS``) or the name of any PEFT method (``LORA``).
        options: Fields of the method's PEFT config that differ from its defaults.
        per_task: Learn and keep an adapter of its own for each task. All of them count as stored.
        bits: Bits of a trained number in which the adapter is stored, and scored: 3, 4, 8 or 16, for methods that have
            no such option of their own; ``null``: 32.
        total_parameter_budget_mb: The run refuses to start if the saved adapter would be larger (MB of 10^6 bytes).
        core_dictionary: HIMALAYA's frozen atoms.
        elastic_dictionary: HIMALAYA's trained atoms.
        router: HIMALAYA's router.
        coeff_precision_bits: Bits of a coefficient that HIMALAYA stores: 8.
        lora_rank: Rank of LILAC's updates.
        dictionary_size: Atoms of LILAC's dictionary.
        quantisation_bits: Bits of a number in LILAC's release file.
        ewc_lambda: Strength of online EWC (`OnlineEWC`), for methods that do not protect themselves; ``null``: none.
    """

    type: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    per_task: bool = False
    bits: int | None = None
    total_parameter_budget_mb: float | None = None
    core_dictionary: CoreDictionaryConfig = field(default_factory=CoreDictionaryConfig)
    elastic_dictionary: ElasticDictionaryConfig = field(default_factory=ElasticDictionaryConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    coeff_precision_bits: int | None = None
    lora_rank: int | None = None
    dictionary_size: int | None = None
    quantisation_bits: int | None = None
    ewc_lambda: float | None = None


@dataclass
class ModelConfig:
    """Backbone and adapter.

    Args:
        backbone: The frozen model.
        adapter: What is trained.
        kd_tree: HIMALAYA's index.
        norm_rescaling: Whether HIMALAYA's update is scaled to norm 1; always true.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    kd_tree: KDTreeConfig = field(default_factory=KDTreeConfig)
    norm_rescaling: bool | None = None
