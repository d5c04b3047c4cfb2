"""From the keys of a run config to the options of its method (`registry`)."""

from dataclasses import asdict
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import flattened, searched_keys
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.registry import METHODS, method_row


def method_of(run: RunConfig) -> str:
    """The PEFT method of a run: HIMALAYA with a key that only HIMALAYA_STRICT has is HIMALAYA_STRICT."""
    method = run.model.adapter.type.upper()
    only_strict = METHODS["HIMALAYA_STRICT"].keys - METHODS["HIMALAYA"].keys
    if method == "HIMALAYA" and not only_strict.isdisjoint((*given_keys(run), *searched_keys(run).values())):
        return "HIMALAYA_STRICT"
    return method


def adapter_options(run: RunConfig) -> dict[str, Any]:
    """The options of the run's PEFT method: those of ``model.adapter.options`` and those that keys of the run set.

    Raises:
        HimalayaError: A key of another method, an option that is given twice, or a value other than the only possible
            one.
    """
    options = dict(run.model.adapter.options)
    method = method_row(method_of(run))
    for key, value in given_keys(run).items():
        if key not in method.keys:
            owner = next(name for name, other in METHODS.items() if key in other.keys)
            raise HimalayaError(
                f"{key} of run '{run.run_id}' is a key of {owner}, model.adapter.type is "
                f"{run.model.adapter.type}: delete the key, or set what the method has in model.adapter.options"
            )
        if key in method.fixed:
            only, reason = method.fixed[key]
            if value != only:
                raise HimalayaError(f"{key}={_yaml(value)} of run '{run.run_id}': expected {_yaml(only)}; {reason}")
            continue
        option = method.options[key]
        if option in run.model.adapter.options:
            raise HimalayaError(
                f"{key} and model.adapter.options.{option} of run '{run.run_id}' set the same thing: give one of them"
            )
        options[option] = value
    return options


def given_keys(run: RunConfig) -> dict[str, Any]:
    """The keys of all methods that the run sets, with their values."""
    known = [key for method in METHODS.values() for key in (*method.options, *method.fixed)]
    values = flattened(asdict(run))
    return {key: values[key] for key in dict.fromkeys(known) if values[key] is not None}


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
