"""From ``optuna.search_space`` to the keys that a trial varies, and from a trial's values back to a run config."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from himalaya_adapter import stream_metrics
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.keys import flattened, put
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.schema import parse
from himalaya_adapter.experiments.search_config import OptunaConfig, SearchRange, searched_key
from himalaya_adapter.experiments.validation import check_run

# What a trial has of the search and not of the run.
KEYS_OF_A_TRIAL = (
    *("run_id", "dataset.name", "dataset.num_tasks", "dataset.languages", "evaluation.primary_metric"),
    *("evaluation.split", "evaluation.rows", "training.report_to"),
)
# Optuna keeps these in every storage; any other choice of a categorical is kept as JSON text.
PLAIN_CHOICES = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class SearchedKey:
    """One hyper-parameter.

    Args:
        name: Its name in ``optuna.search_space``.
        key: The key of the run config that it sets.
        values: The range as it is written there.
        distribution: The same for Optuna.
    """

    name: str
    key: str
    values: SearchRange
    distribution: BaseDistribution

    def value(self, stored: Any) -> Any:
        """The value of the config that Optuna keeps as ``stored``."""
        choices = self.values.choices
        return next(one for one in choices if _stored(one) == stored) if choices is not None else stored


def searched_keys(run: RunConfig) -> list[SearchedKey]:
    """The hyper-parameters of a run whose ranges are known to make sense.

    Raises:
        HimalayaError: No search space, two names of one key, a key that the search sets itself, or a range that
            reaches a value that no run takes.
    """
    if not run.optuna.search_space:
        raise HimalayaError(
            f"run '{run.run_id}' has no optuna.search_space, so there is nothing to search; for example "
            "optuna.search_space.learning_rate='{type: loguniform, low: 1e-5, high: 1e-2}'"
        )
    keys = [key for key in flattened(asdict(run)) if not key.startswith("optuna.")]
    found: dict[str, SearchedKey] = {}
    for name, values in run.optuna.search_space.items():
        key = searched_key(name, keys)
        if key in found:
            raise HimalayaError(
                f"optuna.search_space.{name} and {found[key].name} both mean {key}: delete one of them"
            )
        if key in KEYS_OF_A_TRIAL:
            raise HimalayaError(f"optuna.search_space.{name} means {key}, which a search sets itself: delete it")
        found[key] = SearchedKey(name, key, values, _distribution(values))
    for searched in found.values():
        for value in searched.values.outermost():
            try:
                with_values(run, {searched.key: value})
            except HimalayaError as error:
                raise HimalayaError(
                    f"optuna.search_space.{searched.name} reaches what no run takes: {error}"
                ) from error
    return list(found.values())


def trial_run(run: RunConfig) -> RunConfig:
    """The run that a trial is, but for its number and its values.

    It learns the stream of the search, whose tasks and languages are its own, and is scored on its validation items,
    in every row, so that it can be stopped after any task. It neither searches nor logs, and measures no latency.
    """
    return replace(
        run,
        dataset=replace(run.dataset, name=run.optuna.stream, num_tasks=None, languages=None),
        training=replace(run.training, report_to="none"),
        evaluation=replace(run.evaluation, split="validation", rows="all", secondary_metric=None),
        optuna=OptunaConfig(),
    )


def with_values(run: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The run with some values in place of its own.

    Args:
        run: Any run.
        values: Key of the config to value.

    Raises:
        HimalayaError: A value of the wrong type, or one that `check_run` refuses.
    """
    content = asdict(run)
    for key, value in values.items():
        put(content, key, value)
    changed = parse(RunConfig, content, f"run '{run.run_id}'")
    check_run(changed)
    return changed


def direction_of(run: RunConfig) -> Literal["maximize", "minimize"]:
    """As the run says, else what is better of its primary metric."""
    better = "minimize" if run.evaluation.primary_metric in stream_metrics.LOWER_IS_BETTER else "maximize"
    return "minimize" if (run.optuna.direction or better) == "minimize" else "maximize"


def _distribution(values: SearchRange) -> BaseDistribution:
    if values.choices is not None:
        return CategoricalDistribution([_stored(one) for one in values.choices])
    low, high = cast(float, values.low), cast(float, values.high)
    if values.type == "int":
        return IntDistribution(int(low), int(high), log=bool(values.log), step=int(values.step or 1))
    return FloatDistribution(low, high, log=values.type == "loguniform", step=values.step)


def _stored(choice: Any) -> Any:
    return choice if isinstance(choice, PLAIN_CHOICES) else json.dumps(choice)
