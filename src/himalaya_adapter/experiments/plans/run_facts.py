"""What a plan fixes of each of its runs: method, backbone, stream. Rules and language models alike must keep to it."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.plans.method_names import NamedMethod, named_method
from himalaya_adapter.experiments.plans.plan import Plan, PlannedRun
from himalaya_adapter.experiments.plans.plan_words import Catalogue, read_backbone, read_stream
from himalaya_adapter.experiments.plans.prose import read_stream_name

DESIGN = "experimental_design"
ITERATION = "iter1"  # the source's names of runs say in which round of planning they were made


@dataclass(frozen=True)
class RunFacts:
    """What the plan fixes of a run.

    Args:
        run: The run as the plan lists it.
        where: The field that lists it.
        method: Its method.
        method_text: What the plan says of the method.
        method_field: Where it says so.
        values: The fixed values, by keys.
    """

    run: PlannedRun
    where: str
    method: NamedMethod
    method_text: str
    method_field: str
    values: Mapping[str, Any]


def run_facts(plan: Plan, known: Catalogue) -> list[RunFacts]:
    """What a plan fixes of each of its runs, in its order.

    Raises:
        HimalayaError: A method, model or dataset that the plan does not list or that nobody knows.
    """
    if plan.runs is None:
        return [_facts(plan, DESIGN, run, known) for run in _implied_runs(plan)]
    return [_facts(plan, f"experiment_runs[{number}]", run, known) for number, run in enumerate(plan.runs)]


def file_safe(text: str) -> str:
    """``Llama-2-7B-HF (4-bit QLoRA, 7 B parameters)`` as ``Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters``."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")


def _implied_runs(plan: Plan) -> list[PlannedRun]:
    """Every method on every model and dataset, named as the source names its runs."""
    methods = ["proposed", *(f"comparative-{number + 1}" for number in range(len(plan.comparative_methods)))]
    runs = [
        PlannedRun("-".join([method, ITERATION, *map(file_safe, names)]), method, names[0], dataset, {})
        for method in methods
        for model in plan.models_to_use
        for dataset in plan.datasets_to_use or (None,)
        for names in [[model] if dataset is None else [model, dataset]]
    ]
    for run_id, count in Counter(run.run_id.casefold() for run in runs).items():
        if count > 1:
            raise HimalayaError(f"{DESIGN} gives {count} runs the run_id '{run_id}': name them in experiment_runs")
    return runs


def _facts(plan: Plan, where: str, run: PlannedRun, known: Catalogue) -> RunFacts:
    texts = {"proposed": (plan.proposed_method, f"{DESIGN}.proposed_method")}
    for place, text in enumerate(plan.comparative_methods):
        texts[f"comparative-{place + 1}"] = (text, f"{DESIGN}.comparative_methods[{place}]")
    if run.method not in texts:
        raise unknown_name(f"{where}.method", run.method, texts)
    if run.model not in plan.models_to_use:
        raise unknown_name(f"{where}.model", run.model, plan.models_to_use)
    text, field = texts[run.method]
    method = named_method(text, field)
    backbone = read_backbone(run.model, plan.hub_models, known)
    values = {
        "run_id": run.run_id,
        "method": run.method.partition("-")[0],
        "method_name": method.name,
        **backbone,
        "model.adapter.type": method.type,
        "dataset.name": read_stream(_dataset(plan, run, where), known),
        "dataset.tokenizer": backbone["model.backbone.name"],
    }
    return RunFacts(run, where, method, text, field, values)


def _dataset(plan: Plan, run: PlannedRun, where: str) -> str:
    if run.dataset is not None:
        if plan.datasets_to_use and run.dataset not in plan.datasets_to_use:
            raise unknown_name(f"{where}.dataset", run.dataset, plan.datasets_to_use)
        return run.dataset
    if len(plan.datasets_to_use) > 1:
        raise HimalayaError(f"{where} has no 'dataset'; expected one of {', '.join(plan.datasets_to_use)}")
    said = plan.datasets_to_use[0] if plan.datasets_to_use else read_stream_name(plan.experiment_summary)
    if said is None:
        raise HimalayaError(f"{DESIGN}.datasets_to_use is empty; expected a stream, such as continual_task_stream_25")
    return said
