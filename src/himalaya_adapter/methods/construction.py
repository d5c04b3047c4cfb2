"""From a run's adapter entry to a PEFT model."""

from collections.abc import Mapping
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from himalaya_adapter.errors import HimalayaError, unknown_name


def method_config(method: str, options: Mapping[str, Any]) -> PeftConfig:
    """The PEFT config of ``method`` for a causal language model.

    Args:
        method: ``HIMALAYA`` or any method of PEFT, in any case.
        options: Fields of that method's config.

    Raises:
        HimalayaError: Unknown method, unknown field, or a value that the config refuses.
    """
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(method.upper())
    if config_class is None:
        raise unknown_name("method", method, [kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING])
    fields = config_class.__dataclass_fields__
    for name in options:
        if name not in fields:
            raise unknown_name(f"option of method {method}", name, fields)
    try:
        return config_class(**{"task_type": "CAUSAL_LM", **options})
    except (TypeError, ValueError) as error:
        raise HimalayaError(f"options of method {method}: {error}") from error


def adapt(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """Attach a fresh adapter to a frozen model; the same seed gives the same adapter.

    Raises:
        HimalayaError: The targets do not fit the model.
    """
    set_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise HimalayaError(f"{config.peft_type.value} does not fit {type(model).__name__}: {error}") from error
    if not isinstance(adapted, PeftModel):
        raise HimalayaError(f"{config.peft_type.value} is not a method that adapts one model with one adapter")
    return adapted
