"""An experiment plan: its fields, and one clear line for whatever is wrong in them."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.composition import CONF

PLANS = CONF / "plans"
SECTIONS = ("hypothesis", "method", "experimental_design", "experiment_runs", "environment")
HYPOTHESIS = (
    *("open_problems", "method", "experimental_setup", "primary_metric", "experimental_code", "expected_result"),
    "expected_conclusion",
)
REQUIRED_DESIGN = (
    *("experiment_summary", "evaluation_metrics", "proposed_method", "comparative_methods", "models_to_use"),
    *("datasets_to_use", "hyperparameters_to_search"),
)
DESIGN = (*REQUIRED_DESIGN, "settings", "external_resources", "experiment_code")
RUN = ("run_id", "method", "model", "dataset", "settings")
ENVIRONMENT = ("gpu", "vram", "ram")


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub that the plan's resources name.

    Args:
        id: ``owner/name``.
        sha: The commit that is meant; ``None`` if the plan does not say.
    """

    id: str
    sha: str | None


@dataclass(frozen=True)
class PlannedRun:
    """A run that the plan lists.

    Args:
        run_id: Its name.
        method: ``proposed``, or ``comparative-N`` for the N-th of ``comparative_methods``.
        model: One of ``models_to_use``, as it stands there.
        dataset: One of ``datasets_to_use``, or ``None`` for the only one there is.
        settings: Values for this run alone, by names of keys.
    """

    run_id: str
    method: str
    model: str
    dataset: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a plan says, as it says it.

    Args:
        path: Where it was read, for messages.
        text: The file's text.
        primary_metric: The hypothesis' metric, in prose; ``None`` if it has none.
        experiment_summary: What is done, in prose.
        evaluation_metrics: Metrics, in prose.
        proposed_method: The method, in prose that begins with its name.
        comparative_methods: Its rivals, each in prose that begins with its name.
        models_to_use: Backbones, such as ``Llama-2-7B-HF (4-bit QLoRA, 7 B parameters)``.
        datasets_to_use: Streams.
        hyperparameters_to_search: Ranges by names of keys.
        settings: Values for every run that has the key, by names of keys.
        hub_models: The models of ``external_resources``.
        runs: The runs; ``None`` if the plan leaves them to follow from the rest.
        gpu: The machine's GPU, in prose.
        vram: Its memory, in prose.
    """

    path: Path
    text: str
    primary_metric: str | None
    experiment_summary: str
    evaluation_metrics: tuple[str, ...]
    proposed_method: str
    comparative_methods: tuple[str, ...]
    models_to_use: tuple[str, ...]
    datasets_to_use: tuple[str, ...]
    hyperparameters_to_search: Mapping[str, Any]
    settings: Mapping[str, Any]
    hub_models: tuple[HubModel, ...]
    runs: tuple[PlannedRun, ...] | None
    gpu: str | None
    vram: str | None


def plan_names() -> list[str]:
    """Names of the plans that come with the package."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def read_plan(name: str) -> Plan:
    """Read a plan.

    Args:
        name: The path of a YAML or (``.json``) JSON file, or the name of a packaged plan.

    Raises:
        HimalayaError: An unreadable file, a field that is missing, unknown or of the wrong type, two runs of one name.
    """
    path = PLANS / f"{name}.yaml" if name in plan_names() else Path(name)
    text, content = read_document(path)
    try:
        return _plan(path, text, content)
    except HimalayaError as error:
        raise HimalayaError(f"plan {path}: {error}") from error


def read_document(path: Path) -> tuple[str, Any]:
    """The text of a YAML or (``.json``) JSON file, and its content.

    Raises:
        HimalayaError: The file cannot be read or parsed, or says a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            return text, json.loads(text, object_pairs_hook=_once)
        return text, yaml.load(text, _OnceLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, json.JSONDecodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HimalayaError(f"cannot read {path}: {' '.join(reason.split())}") from error


class _OnceLoader(yaml.SafeLoader):
    """A loader to which a key that stands twice is a mistake, not a way to overwrite the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and seen[key.value] > 1:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise yaml.MarkedYAMLError(problem=f"key '{key}' stands twice")
    return dict(pairs)


def _plan(path: Path, text: str, content: Any) -> Plan:
    plan = _mapping(content, "the plan", SECTIONS)
    if "experimental_design" not in plan:
        raise HimalayaError(f"no 'experimental_design'; expected keys with values ({', '.join(DESIGN)})")
    hypothesis = _mapping(plan.get("hypothesis") or {}, "hypothesis", HYPOTHESIS)
    here = "experimental_design"
    design = _mapping(plan[here], here, DESIGN)
    for key in REQUIRED_DESIGN:
        if key not in design:
            raise HimalayaError(f"{here} has no '{key}'")
    environment = _mapping(plan.get("environment") or {}, "environment", ENVIRONMENT)
    runs = plan.get("experiment_runs")
    return Plan(
        path=path,
        text=text,
        primary_metric=_optional_text(hypothesis, "primary_metric", "hypothesis"),
        experiment_summary=_text(design, "experiment_summary", here),
        evaluation_metrics=_texts(design, "evaluation_metrics", here),
        proposed_method=_text(design, "proposed_method", here),
        comparative_methods=_texts(design, "comparative_methods", here, may_be_empty=True),
        models_to_use=_texts(design, "models_to_use", here),
        datasets_to_use=_texts(design, "datasets_to_use", here, may_be_empty=True),
        hyperparameters_to_search=_named(design["hyperparameters_to_search"], f"{here}.hyperparameters_to_search"),
        settings=_named(design.get("settings"), f"{here}.settings"),
        hub_models=_hub_models(design.get("external_resources"), f"{here}.external_resources"),
        runs=None if runs is None else _runs(runs),
        gpu=_optional_text(environment, "gpu", "environment"),
        vram=_optional_text(environment, "vram", "environment"),
    )


def _runs(value: Any) -> tuple[PlannedRun, ...]:
    if not isinstance(value, list) or not value:
        raise HimalayaError(f"experiment_runs is {_short(value)}; expected a list of runs ({', '.join(RUN)})")
    runs = []
    for number, entry in enumerate(value):
        here = f"experiment_runs[{number}]"
        run = _mapping(entry, here, RUN)
        for key in ("run_id", "method", "model"):
            if key not in run:
                raise HimalayaError(f"{here} has no '{key}'")
        runs.append(
            PlannedRun(
                run_id=_text(run, "run_id", here),
                method=_text(run, "method", here),
                model=_text(run, "model", here),
                dataset=_optional_text(run, "dataset", here),
                settings=_named(run.get("settings"), f"{here}.settings"),
            )
        )
    # Two names that differ only in case are one file on some machines.
    for name, count in Counter(run.run_id.casefold() for run in runs).items():
        if count > 1:
            twice = [f"experiment_runs[{number}]" for number, run in enumerate(runs) if run.run_id.casefold() == name]
            raise HimalayaError(f"{' and '.join(twice)} have the same run_id '{name}'; a run_id names one run")
    return tuple(runs)


def _hub_models(value: Any, here: str) -> tuple[HubModel, ...]:
    hub = _mapping(_mapping(value or {}, here, None).get("hugging_face") or {}, f"{here}.hugging_face", None)
    models = hub.get("models") or []
    here = f"{here}.hugging_face.models"
    if not isinstance(models, list):
        raise HimalayaError(f"{here} is {_short(models)}; expected a list of models, each with an id")
    found = []
    for number, entry in enumerate(models):
        model = _mapping(entry, f"{here}[{number}]", None)
        if "id" not in model:
            raise HimalayaError(f"{here}[{number}] has no 'id'")
        found.append(HubModel(_text(model, "id", f"{here}[{number}]"), _optional_text(model, "sha", here)))
    return tuple(found)


def _mapping(value: Any, here: str, known: tuple[str, ...] | None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        keys = f" ({', '.join(known)})" if known else ""
        raise HimalayaError(f"{here} is {_short(value)}; expected keys with values{keys}")
    for key in value:
        if known and key not in known:
            raise unknown_name(f"key in {here}", str(key), known)
    return value


def _named(value: Any, here: str) -> Mapping[str, Any]:
    """A mapping from names of the user's choice."""
    mapping = _mapping({} if value is None else value, here, None)
    for name in mapping:
        if not isinstance(name, str):
            raise HimalayaError(f"{here} has the name {_short(name)}; expected text")
    return mapping


def _text(entry: Mapping[str, Any], key: str, here: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise HimalayaError(f"{here}.{key} is {_short(value)}; expected non-empty text")
    return value.strip()


def _optional_text(entry: Mapping[str, Any], key: str, here: str) -> str | None:
    return None if entry.get(key) is None else _text(entry, key, here)


def _texts(entry: Mapping[str, Any], key: str, here: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    value = entry[key]
    if not isinstance(value, list) or not (value or may_be_empty):
        expected = "a list of text" if may_be_empty else "a list of text with at least one entry"
        raise HimalayaError(f"{here}.{key} is {_short(value)}; expected {expected}")
    return tuple(_text({f"{key}[{number}]": one}, f"{key}[{number}]", here) for number, one in enumerate(value))


def _short(value: Any) -> str:
    words = json.dumps(value, ensure_ascii=False, default=str)
    return words if len(words) <= 60 else f"{words[:60]}…"
