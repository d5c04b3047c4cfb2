"""The short texts of a plan's fields: a backbone with its quantisation, metrics, a machine, a stream's name."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.plans.plan import HubModel, Plan
from himalaya_adapter.experiments.validation import CHOICES
from himalaya_adapter.stream_metrics import LOWER_IS_BETTER

MODEL = re.compile(r"([^(]+?)\s*(?:\(([^()]*)\))?")
SIZE = re.compile(r"\d+(?:\.\d+)?\s?[BMbm](?:\s?param\w*)?")
AREA_UNDER_CURVE = re.compile(r"area under (?:the )?curve")


@dataclass(frozen=True)
class Catalogue:
    """What the higher floors know by name.

    Args:
        streams: Names of the packaged streams.
        backbones: Names of the catalogue's backbones, each with the revision that is loaded, if it has one.
    """

    streams: tuple[str, ...]
    backbones: Mapping[str, str | None]


def read_backbone(model: str, hub_models: tuple[HubModel, ...], known: Catalogue) -> dict[str, Any]:
    """The backbone's keys from a text such as ``Llama-2-7B-HF (4-bit QLoRA, 7 B parameters)``.

    The name is a model of the plan's resources or of the catalogue (the part of its id after the slash, in any case
    and with any separators), a hub id ``owner/name``, or a folder. What stands in brackets is a quantisation, a
    precision, or a size, which says nothing.

    Raises:
        HimalayaError: An unknown model, quantisation, or two models of one name.
    """
    form = MODEL.fullmatch(model.strip())
    if not form:
        raise HimalayaError(f"model '{model}': expected NAME or NAME (quantisation, size)")
    values: dict[str, Any] = {"model.backbone.name": _backbone_name(form[1], hub_models, known)}
    keys = ("model.backbone.quantisation", "model.backbone.dtype")
    choices = {str(choice).casefold(): (key, choice) for key in keys for choice in CHOICES[key] if choice}
    for part in (part.strip() for part in (form[2] or "").split(",")):
        if not part or SIZE.fullmatch(part):
            continue
        if part.casefold() not in choices:
            known_words = [str(choice) for _, choice in choices.values()]
            raise unknown_name(f"quantisation of model '{model}'", part, known_words)
        key, choice = choices[part.casefold()]
        if key in values:
            raise HimalayaError(f"model '{model}' has two values for {key}: {values[key]} and {choice}")
        values[key] = choice
    return values


def _backbone_name(name: str, hub_models: tuple[HubModel, ...], known: Catalogue) -> str:
    ids = dict.fromkeys([*(model.id for model in hub_models), *known.backbones])
    found = [one for one in ids if _plain(name) in (_plain(one), _plain(one.rpartition("/")[2]))]
    if len(found) > 1:
        raise HimalayaError(f"model '{name}' may mean {' or '.join(found)}: write the whole id")
    if not found and not re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).is_dir():
        raise unknown_name("model in models_to_use", name, ids)
    chosen = found[0] if found else name
    sha = next((model.sha for model in hub_models if model.id == chosen), None)
    loaded = known.backbones.get(chosen)
    if sha and loaded and sha != loaded:
        raise HimalayaError(f"the plan means revision {sha} of {chosen}; revision {loaded} is what a run loads")
    if sha and not loaded:
        logging.getLogger(__name__).warning("%s: a run loads its newest revision, not the plan's %s", chosen, sha)
    return chosen


def read_stream(name: str, known: Catalogue) -> str:
    """A packaged stream's name from its name in any spelling (``Demo Stream 6``), or the path of a YAML file.

    Raises:
        HimalayaError: Neither.
    """
    found = [stream for stream in known.streams if _plain(stream) == _plain(name)]
    if found or Path(name).is_file():
        return found[0] if found else name
    raise unknown_name("dataset", name, known.streams)


def read_metrics(plan: Plan) -> tuple[dict[str, Any], str]:
    """The keys of the metrics, and the direction of a search.

    The primary metric is the hypothesis' ``primary_metric`` up to the word secondary, else the first of
    ``evaluation_metrics`` that a run computes. ``Area-Under-Curve`` is read as AUC. ``↑`` and ``↓`` give the
    direction; without them it follows from the metric.

    Raises:
        HimalayaError: No metric that a run computes, or several.
    """
    key, second = "evaluation.primary_metric", "evaluation.secondary_metric"
    primary, _, secondary = (plan.primary_metric or "").partition("secondary")
    if primary.strip():
        metric = _metric(primary, key)
        if metric is None:
            raise unknown_name("hypothesis.primary_metric", primary.strip(), [str(one) for one in CHOICES[key]])
    else:
        texts = [text for text in plan.evaluation_metrics if _metric(text, key)]
        if not texts:
            known = ", ".join(map(str, CHOICES[key]))
            raise HimalayaError(f"experimental_design.evaluation_metrics: none is computed by a run; known: {known}")
        primary, metric = texts[0], _metric(texts[0], key)
    values: dict[str, Any] = {key: metric}
    others = [_metric(text, second) for text in (secondary, *plan.evaluation_metrics)]
    if secondary.strip(" .–—-:;") and others[0] is None:
        known_words = [str(one) for one in CHOICES[second] if one]
        raise unknown_name("secondary metric in hypothesis.primary_metric", secondary.strip(" .–—-:;"), known_words)
    if any(others):
        values[second] = next(filter(None, others))
    down = "↓" in primary or ("↑" not in primary and metric in LOWER_IS_BETTER)
    return values, "minimize" if down else "maximize"


def _metric(text: str, key: str) -> str | None:
    """The metric whose words all stand in a text; of several the one with the most words."""
    said = " ".join(re.findall(r"[a-z]+", text.casefold()))
    words = set(AREA_UNDER_CURVE.sub("auc", said).split())
    found = [str(one) for one in CHOICES[key] if one and set(str(one).split("_")) <= words]
    found.sort(key=lambda one: -len(one.split("_")))
    if len(found) > 1 and len(found[0].split("_")) == len(found[1].split("_")):
        raise HimalayaError(f"metric '{text.strip()}' may mean {' or '.join(found)}: name one")
    return found[0] if found else None


def read_hardware(gpu: str | None, vram: str | None) -> dict[str, Any]:
    """The machine's keys from ``NVIDIA A100 or H200`` and ``80 GB or more``: the first GPU, the least memory.

    Raises:
        HimalayaError: Memory that is not a number of GB.
    """
    values: dict[str, Any] = {}
    if vram is not None:
        size = re.search(r"(\d+(?:\.\d+)?)\s?GB\b", vram)
        if not size:
            raise HimalayaError(f"environment.vram is '{vram}'; expected a number of GB, such as 80 GB or more")
        values["hardware.max_gpu_mem_gb"] = float(size[1])
    if gpu is not None:
        name = re.split(r"\s+or\s+|[,/(]", gpu)[0].strip().removeprefix("NVIDIA").strip()
        memory = f"-{values['hardware.max_gpu_mem_gb']:g}GB" if values and "GB" not in name else ""
        values["hardware.gpu_type"] = re.sub(r"\s+", "-", name) + memory
    return values


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
