"""Values of a run config that have the right type and still make no sense, refused before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import flattened, put, searched_keys
from himalaya_adapter.experiments.method_options import adapter_options, method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import parse
from himalaya_adapter.names import check_name
from himalaya_adapter.registry import method_row


def check_run(run: RunConfig) -> None:
    """Check what the schema says of each key, what it cannot say, and that a search could be made as it is written.

    Raises:
        HimalayaError: A value that makes no sense; the message names the key, the value and what is right.
    """
    with_values(run, {})
    for name, key in searched_keys(run).items():
        values = run.optuna.search_space[name]
        try:
            values.distribution()
            for value in values.outermost():
                with_values(run, {key: value})
        except HimalayaError as error:
            raise HimalayaError(f"optuna.search_space.{name} of run '{run.run_id}': {error}") from error


def with_values(run: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The run with some values in place of its own.

    Args:
        run: Any run.
        values: Key of the config to value.

    Raises:
        HimalayaError: A value of the wrong type, or one that makes no sense.
    """
    content = asdict(run)
    for key, value in values.items():
        put(content, key, value)
    changed = parse(RunConfig, content, f"run '{run.run_id}'")
    _check_values(changed)
    return changed


def _check_values(run: RunConfig) -> None:
    values = flattened(asdict(run))
    check_name(run.run_id, "run_id")

    def require(right: bool, key: str, expected: str) -> None:
        if not right:
            raise HimalayaError(f"{key}={values.get(key)} of run '{run.run_id}': expected {expected}")

    for key, value in values.items():
        require(not isinstance(value, float) or math.isfinite(value), key, "a finite number")
    warmup = run.training.warmup_steps
    require(warmup < 1 or warmup.is_integer(), "training.warmup_steps", "a share below 1, or a whole number of steps")
    method, without_ewc = method_of(run), run.model.adapter.ewc_lambda is None
    twice = f"null: {method} protects earlier tasks itself"
    row, per_task, in_sequence = method_row(method), run.model.adapter.per_task, run.training.protocol == "sequential"
    require(without_ewc or not row.protects_itself, "model.adapter.ewc_lambda", twice)
    require(in_sequence or not per_task, "model.adapter.per_task", "false: training.protocol is not sequential")
    own = f"null: {method} has quantisation_bits, or rests on what it has learnt to the bit"
    ready = not (row.protects_itself or "quantisation_bits" in row.options.values())
    require(ready or run.model.adapter.bits is None, "model.adapter.bits", own)
    earlier = without_ewc or (in_sequence and not per_task)
    require(earlier, "model.adapter.ewc_lambda", "null: only training.protocol=sequential has earlier tasks")
    require(run.model.backbone.frozen, "model.backbone.frozen", "true: only the adapter is trained")
    require(run.dataset.streaming is not False, "dataset.streaming", "true: tasks come one after another, and once")
    backbone, tokenizer = run.model.backbone.name, run.dataset.tokenizer
    require(tokenizer in (None, backbone), "dataset.tokenizer", f"{backbone}, the backbone's own, or null")
    adapter_options(run)
