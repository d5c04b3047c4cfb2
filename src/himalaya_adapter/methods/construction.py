"""From a run's adapter entry to a PEFT model."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast, get_type_hints

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, PeftType, get_peft_model
from transformers import PreTrainedModel, set_seed

from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.experiments.method_options import adapter_options, given_keys, method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.registry import method_row

# What an option of a plain type may be given as, and how that is called.
PLAIN_TYPES: dict[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
}


def run_method(run: RunConfig) -> PeftConfig:
    """The PEFT config of a run's method.

    Raises:
        HimalayaError: What `adapter_options` and `method_config` refuse; the message names the run's key.
    """
    method, options = method_of(run), adapter_options(run)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(method)
    if "seed" in getattr(kind, "__dataclass_fields__", ()):
        options.setdefault("seed", run.training.seed)
    try:
        return method_config(method, options)
    except HimalayaError as error:
        message, option_of = str(error), method_row(method).options
        keys = [key for key in given_keys(run) if key in option_of and f"{option_of[key]}=" in message]
        raise HimalayaError(message + (f" (the run sets it as {keys[0]})" if keys else "")) from error


def method_config(method: str, options: Mapping[str, Any]) -> PeftConfig:
    """The PEFT config of ``method`` for a causal language model.

    Args:
        method: One of this package or any of PEFT, in any case.
        options: Fields of that method's config.

    Raises:
        HimalayaError: Unknown method, unknown field, a value that the config refuses, or a method that a stream
            cannot run.
    """
    known = {kind.value: config_class for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method.upper() not in known:
        raise unknown_name("method", method.lower(), [name.lower() for name in known])
    config_class = known[method.upper()]
    # Without those that every config has: this package sets them.
    fields = config_class.__dataclass_fields__.keys() - PeftConfig.__dataclass_fields__.keys()
    for name in options:
        if name not in fields:
            raise unknown_name(f"option of method {method}", name, fields)
    hints = get_type_hints(config_class)
    for name, value in options.items():
        accepted, expected = PLAIN_TYPES.get(hints[name], (object, ""))
        if not isinstance(value, accepted) or (isinstance(value, bool) and hints[name] in (int, float)):
            raise HimalayaError(f"option {name} of method {method} is {value!r}; expected {expected}")
    try:
        config = config_class(**{"task_type": "CAUSAL_LM", **options})
    except (TypeError, ValueError) as error:
        raise HimalayaError(f"options of method {method}: {one_line(error)}") from error
    if config.is_prompt_learning or config.peft_type == PeftType.POLY:
        raise HimalayaError(
            f"method {method} needs more than a pass's tokens (virtual ones, or the task's number), which a stream's "
            "scoring from a cache does not give it: choose a method that adapts the model's modules, such as lora"
        )
    return config


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that PEFT's own use of transformers brings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def adapt(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """Attach a fresh adapter to a frozen model; the same seed gives the same adapter.

    Raises:
        HimalayaError: The targets do not fit the model.
    """
    set_seed(seed)
    try:
        with quiet_peft():
            return cast(PeftModel, get_peft_model(model, config))  # the other kind is of mixed adapters
    # Some methods need a package of their own; target_modules may be a regular expression.
    except (TypeError, ValueError, KeyError, ImportError, re.error) as error:
        raise HimalayaError(
            f"{PeftType(config.peft_type).value} does not fit {type(model).__name__}: {one_line(error)}"
        ) from error
