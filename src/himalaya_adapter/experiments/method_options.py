"""What the methods' keys of a run config mean: the one place where a key becomes an option of a method."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from omegaconf import OmegaConf

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import leaf_keys
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.search_config import searched_key

HIMALAYA, HIMALAYA_STRICT = "HIMALAYA", "HIMALAYA_STRICT"
# What the two have in common.
DICTIONARY_KEYS = {
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
class MethodKeys:
    """The keys of a run config that belong to one method.

    Args:
        options: The option of the method that a key sets.
        fixed: Keys with one possible value: the value, and why there is no other.
    """

    options: Mapping[str, str]
    fixed: Mapping[str, tuple[object, str]] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.options or key in self.fixed


KEYS_OF_METHOD: Mapping[str, MethodKeys] = MappingProxyType(
    {
        HIMALAYA: MethodKeys(
            options={**DICTIONARY_KEYS, "model.adapter.router.expected_active_atoms": "active_atoms"},
            fixed=DICTIONARY_FIXED,
        ),
        HIMALAYA_STRICT: MethodKeys(
            options={
                **DICTIONARY_KEYS,
                "model.adapter.router.hidden_params": "hidden_params",
                "model.adapter.router.expected_active_atoms": "expected_active_atoms",
                "model.adapter.router.temperature_init": "temperature_init",
            },
            fixed={
                **DICTIONARY_FIXED,
                "training.router_temperature_anneal": ("linear", "the gates' temperature falls linearly over a task"),
            },
        ),
        "LILAC": MethodKeys(
            options={
                "model.adapter.lora_rank": "lora_rank",
                "model.adapter.dictionary_size": "dictionary_size",
                "model.adapter.quantisation_bits": "quantisation_bits",
            }
        ),
    }
)


def method_of(run: RunConfig) -> str:
    """The PEFT method of a run: a run of HIMALAYA that sets or searches a key which only the letter has is of it."""
    method = run.model.adapter.type.upper()
    keys, letter = KEYS_OF_METHOD[HIMALAYA], KEYS_OF_METHOD[HIMALAYA_STRICT]
    if method == HIMALAYA and any(key in letter and key not in keys for key in (*given_keys(run), *_searched(run))):
        return HIMALAYA_STRICT
    return method


def adapter_options(run: RunConfig) -> dict[str, Any]:
    """The options of the run's PEFT method: those of ``model.adapter.options`` and those that keys of the run set.

    Raises:
        HimalayaError: A key of another method, an option that is given twice, or a value other than the only possible
            one.
    """
    options = dict(run.model.adapter.options)
    keys = KEYS_OF_METHOD.get(method_of(run), MethodKeys({}))
    for key, value in given_keys(run).items():
        if key not in keys:
            owner = next(name for name, others in KEYS_OF_METHOD.items() if key in others)
            raise HimalayaError(
                f"{key} of run '{run.run_id}' is a key of {owner}, model.adapter.type is "
                f"{run.model.adapter.type}: delete the key, or set what the method has in model.adapter.options"
            )
        if key in keys.fixed:
            only, reason = keys.fixed[key]
            if value != only:
                raise HimalayaError(f"{key}={_yaml(value)} of run '{run.run_id}': expected {_yaml(only)}; {reason}")
            continue
        option = keys.options[key]
        if option in run.model.adapter.options:
            raise HimalayaError(
                f"{key} and model.adapter.options.{option} of run '{run.run_id}' set the same thing: give one of them"
            )
        options[option] = value
    return options


def given_keys(run: RunConfig) -> dict[str, Any]:
    """The keys of all methods that the run sets, with their values."""
    config = OmegaConf.structured(run)
    known = [key for keys in KEYS_OF_METHOD.values() for key in (*keys.options, *keys.fixed)]
    values = {key: OmegaConf.select(config, key) for key in known}
    return {key: value for key, value in values.items() if value is not None}


def option_keys(run: RunConfig) -> dict[str, str]:
    """The keys that the run sets, each with the option that it stands for."""
    keys = KEYS_OF_METHOD.get(method_of(run), MethodKeys({}))
    return {key: keys.options[key] for key in given_keys(run) if key in keys.options}


def _searched(run: RunConfig) -> list[str]:
    """The keys that the run's search space varies."""
    keys = [key for key in leaf_keys(OmegaConf.structured(run)) if not key.startswith("optuna.")]
    return [searched_key(name, keys) for name in run.optuna.search_space]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
