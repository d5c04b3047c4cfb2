"""The model card of a release: what the adapter knows and what not, and how it is loaded; machines read it, too."""

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.identity import sealed
from himalaya_adapter.methods.release import CARD_FACTS, CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, file_bytes
from himalaya_adapter.report.markdown import escape
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.report.table import TEMPLATES
from himalaya_adapter.storage import read_json, write_atomic
from himalaya_adapter.stream_metrics import ATOM_NORM_BOUND, update_norm_bound
from himalaya_adapter.streams.catalogue import OWN_DATA, origin_of, read_definition

TEMPLATE = "model_card.md.j2"
TAGS = ["continual-learning", "himalaya-adapter", "peft"]
# Where the hub's list of tasks has no closer word: a model that writes text.
PIPELINE = "text-generation"


def write_model_card(run: RunRecord) -> None:
    """Write ``release/README.md`` of a run that has a release; any other is left alone."""
    folder = run.folder / "release"
    if not (folder / WEIGHTS_FILE).is_file():
        return
    backbone = {
        "name": public_name(run.metrics["backbone"]),
        "revision": run.environment.get("backbone_revision"),
        "quantisation": run.settings.get("model.backbone.quantisation"),
        **run.environment.get("backbone_sizes", {}),
    }
    data = ModelCardData(
        base_model=backbone["name"],
        library_name="peft",
        pipeline_tag=PIPELINE,
        tags=[*TAGS, f"base_model:adapter:{backbone['name']}"],
        model_name=run.run_id,
        eval_results=[_result(run, task) for task in run.metrics["tasks"]],
    )
    data[CARD_FACTS] = sealed({"method": run.metrics["method"], "backbone": backbone, "tasks": list(run.tasks)})
    # The intervals of the scores before and after training do not overlap.
    clear = [task["name"] for task in run.metrics["tasks"] if task["final"]["low"] > task["before"]["high"]]
    parts = file_bytes(folder / WEIGHTS_FILE, f"base_model.{run.metrics['method']}_shared.")
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATES / TEMPLATE),
        run=run,
        clear=clear,
        unclear=[name for name in run.tasks if name not in clear],
        backbone=backbone,
        text=escape,
        code=json.dumps,  # a string in Python as well
        bits=read_json(folder / CONFIG_FILE)["quantisation_bits"],
        parts=sorted(parts.items(), key=lambda part: -part[1]),
        total=sum(parts.values()),
        data_of=_data(run.settings.get("dataset.name", run.metrics["stream"])),
        update_norm_bound=update_norm_bound(run.adapter_config),
        atom_norm_bound=ATOM_NORM_BOUND,
    )
    write_atomic(folder / CARD_FILE, str(card).strip() + "\n")


def _result(run: RunRecord, task: dict[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=PIPELINE,
        dataset_type=run.metrics["stream"],
        dataset_name=f"{run.metrics['stream']}, {task['name']}",
        dataset_config=task["name"],
        dataset_split=run.split,
        metric_type=task["metric"],
        metric_value=task["released"]["score"],
    )


def _data(stream: str) -> dict[str, tuple[str, str]]:
    """Source and licence of each task's data; nothing if the stream is no longer there. Own files stay unnamed."""
    try:
        definition = read_definition(stream)
    except HimalayaError:
        return {}
    found = {spec.name: origin_of(spec, definition) for spec in definition.tasks}
    return {name: (OWN_DATA if what == OWN_DATA else source, what) for name, (source, what) in found.items()}
