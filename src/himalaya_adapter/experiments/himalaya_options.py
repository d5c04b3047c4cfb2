"""What HIMALAYA's keys of a run config mean: the one place where a key becomes an option of the method."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from omegaconf import OmegaConf

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.run_config import RunConfig

HIMALAYA = "HIMALAYA"
OPTION_OF_KEY: Mapping[str, str] = MappingProxyType(
    {
        "model.adapter.core_dictionary.num_atoms": "core_atoms",
        "model.adapter.elastic_dictionary.max_atoms": "elastic_atoms",
        "model.adapter.elastic_dictionary.index": "index",
        "model.adapter.elastic_dictionary.quantisation_bits": "quantisation_bits",
        "model.adapter.router.hidden_params": "hidden_params",
        "model.adapter.router.expected_active_atoms": "expected_active_atoms",
        "model.adapter.router.temperature_init": "temperature_init",
        "model.kd_tree.fanout": "fanout",
        "model.kd_tree.leaf_size": "leaf_size",
        "training.similarity_threshold_tau": "similarity_threshold_tau",
        "training.fisher_projection_steps": "fisher_projection_steps",
    }
)
# Keys with one possible value: the value, and why there is no other.
FIXED_KEYS: Mapping[str, tuple[object, str]] = MappingProxyType(
    {
        "model.adapter.core_dictionary.init": ("isotropic", "the core is orthonormal"),
        "model.adapter.coeff_precision_bits": (8, "coefficients are stored as int8"),
        "model.norm_rescaling": (True, "the bound on the update's norm rests on it"),
        "training.router_temperature_anneal": ("linear", "the gates' temperature falls linearly over a task"),
    }
)


def adapter_options(run: RunConfig) -> dict[str, Any]:
    """The options of the run's PEFT method: those of ``model.adapter.options`` and those that keys of the run set.

    Raises:
        HimalayaError: A key of HIMALAYA in a run of another method, an option that is given twice, or a value other
            than the only possible one.
    """
    given = given_keys(run)
    options = dict(run.model.adapter.options)
    if run.model.adapter.type.upper() != HIMALAYA:
        if given:
            raise HimalayaError(
                f"{next(iter(given))} of run '{run.run_id}' is a key of {HIMALAYA}, model.adapter.type is "
                f"{run.model.adapter.type}: delete the key, or set what the method has in model.adapter.options"
            )
        return options
    for key, value in given.items():
        if key in FIXED_KEYS:
            only, reason = FIXED_KEYS[key]
            if value != only:
                raise HimalayaError(f"{key}={_yaml(value)} of run '{run.run_id}': expected {_yaml(only)}; {reason}")
            continue
        option = OPTION_OF_KEY[key]
        if option in run.model.adapter.options:
            raise HimalayaError(
                f"{key} and model.adapter.options.{option} of run '{run.run_id}' set the same thing: give one of them"
            )
        options[option] = value
    options.setdefault("seed", run.training.seed)
    return options


def given_keys(run: RunConfig) -> dict[str, Any]:
    """The keys of HIMALAYA that the run sets, with their values."""
    config = OmegaConf.structured(run)
    values = {key: OmegaConf.select(config, key) for key in (*OPTION_OF_KEY, *FIXED_KEYS)}
    return {key: value for key, value in values.items() if value is not None}


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
