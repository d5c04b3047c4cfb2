"""One plain PEFT LoRA per task, for servers that know LoRA only, and what the task's score loses by it."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftModel, PeftType, TaskType
from safetensors.torch import save_file
from torch import nn

from himalaya_adapter.deploy.adapter_folder import LoadedAdapter, load_adapter
from himalaya_adapter.deploy.lora_fit import Fit, fit_lora
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.evaluation.batching import padding_token
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.methods.himalaya import HimalayaLayer
from himalaya_adapter.methods.release import WEIGHTS_FILE
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Limits, Task, load_stream
from himalaya_adapter.training.encoded_items import EncodedItems

logger = logging.getLogger(__name__)
FIT_ITEMS = 200
TABLE_FILE = "lora_export.json"
EXACT = "It equals the adapter with frozen routing, `freeze_routing({task!r})`, exactly: ΔW = γ r rᵀ has rank 1."
FITTED = (
    "It is a fit: HIMALAYA's update on the residual stream has no weight to be written into. Its output directions "
    "are exact; its inputs were fitted to {items} training items (share of the update explained on held-out ones: "
    "{explained:.3f})."
)
CARD = """# {task}: a LoRA made from a HIMALAYA adapter

A LoRA of rank {rank} for `{backbone}`, task `{task}`. {what}

| adapter | {metric} on {n} items of the {split} split |
|---|---|
| HIMALAYA, routing per token | {routed:.3f} |
| HIMALAYA, routing frozen | {frozen:.3f} |
| this LoRA | {lora:.3f} |

It loads with `peft.PeftModel.from_pretrained(model, FOLDER)`, without `himalaya-adapter`.
"""


@dataclass(frozen=True)
class TaskExport:
    """One task's LoRA and what it costs.

    Args:
        task: The task's name, and that of the LoRA's folder.
        metric: The task's metric, in [0, 1].
        split: The split that was scored.
        n: Its number of items.
        routed: The score with one routing per token, as the adapter was trained.
        frozen: The score after `freeze_routing`.
        lora: The score of the LoRA, loaded from its folder by PEFT.
        loss: ``routed - lora``.
        rank: The LoRA's rank.
        exact: Whether the LoRA equals the frozen adapter; otherwise it is fitted to the routed one.
        explained: Per module, the share of the update on held-out tokens that the fit reproduces; empty if exact.
    """

    task: str
    metric: str
    split: str
    n: int
    routed: float
    frozen: float
    lora: float
    loss: float
    rank: int
    exact: bool
    explained: tuple[float, ...]

    @property
    def mean_explained(self) -> float | None:
        """Mean over the modules of the share explained; nothing if the LoRA is exact."""
        return sum(self.explained) / len(self.explained) if self.explained else None


def export_lora(run: Path, output: Path, tasks: Sequence[str] = ()) -> list[TaskExport]:
    """Write one LoRA per task of a finished HIMALAYA run, each in a folder of the task's name, and a table of scores.

    With ``placement="weights"`` a LoRA is the frozen adapter, exactly (rank 1); with ``"residual_stream"`` it is
    fitted to the adapter on training items of the run's stream (see `lora_fit`). Scores are over the items that the
    run itself was scored on.

    Args:
        run: The run's folder, or its ``adapter`` or ``release`` folder.
        output: A new or empty folder.
        tasks: Which tasks; all that the run has learnt by default.

    Raises:
        HimalayaError: No such run, task or stream, an adapter of another method, a folder that is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise HimalayaError(f"{output} is not an empty folder: choose a new one for the export")
    adapter = load_adapter(run)
    _check_method(adapter)
    for name in tasks:
        if name not in adapter.tasks:
            raise unknown_name("task", name, adapter.tasks)
    settings = yaml.safe_load((adapter.folder.parent / "config.yaml").read_text(encoding="utf-8"))
    chosen = _load_tasks(settings, list(dict.fromkeys(tasks)) or list(adapter.tasks))
    with _new_folder(output) as folder:
        measured = []
        for task in chosen:
            adapter.model.set_task(task.name)
            routed = _score(adapter.model, adapter.tokenizer, task, settings)
            adapter.model.freeze_routing(task.name)
            frozen = _score(adapter.model, adapter.tokenizer, task, settings)
            exact = adapter.model.supports_lora_conversion()
            fits = _exact(adapter.model) if exact else _fitted(adapter, task, settings["dataset"]["max_seq_length"])
            _write_lora(folder / task.name, fits, adapter)
            logger.info("%s: %.3f per token, %.3f frozen; LoRA written", task.name, routed.score, frozen.score)
            measured.append((task, routed, frozen, fits))
        base, model = adapter.model.unload(), None
        exports = []
        for index, (task, routed, frozen, fits) in enumerate(measured):
            place = folder / task.name
            if model is None:
                model = PeftModel.from_pretrained(base, place, adapter_name=str(index)).eval()
            else:
                model.load_adapter(str(place), adapter_name=str(index))
                model.set_adapter(str(index))
            lora = _score(model, adapter.tokenizer, task, settings)
            one = TaskExport(
                task=task.name,
                metric=lora.metric,
                split=settings["evaluation"]["split"],
                n=lora.n,
                routed=routed.score,
                frozen=frozen.score,
                lora=lora.score,
                loss=routed.score - lora.score,
                rank=len(fits[0].down),
                exact=fits[0].explained is None,
                explained=tuple(fit.explained for fit in fits if fit.explained is not None),
            )
            _write_card(place, one, _public_name(adapter.backbone), min(FIT_ITEMS, len(task.train)))
            exports.append(one)
        write_json(
            folder / TABLE_FILE,
            {"backbone": _public_name(adapter.backbone), "tasks": [asdict(one) for one in exports]},
        )
    return exports


def _check_method(adapter: LoadedAdapter) -> None:
    config = adapter.model.peft_config["default"]
    method = PeftType(config.peft_type).value
    if method == "LORA":
        raise HimalayaError(f"the adapter in {adapter.folder} is a LoRA already: that folder is what a server loads")
    if method != "HIMALAYA":
        raise HimalayaError(
            f"the adapter in {adapter.folder} is of method {method}: only a HIMALAYA adapter is exported as LoRA; "
            "merge_and_unload() merges what can be merged"
        )


def _load_tasks(settings: dict[str, Any], names: list[str]) -> list[Task]:
    dataset, split = settings["dataset"], settings["evaluation"]["split"]
    scored = dataset["max_test_samples_per_task"]
    limits = Limits(
        train=dataset["max_samples_per_task"],
        validation=scored if split == "validation" else None,
        test=scored,
    )
    stream = {task.name: task for task in load_stream(dataset["name"], limits=limits).tasks}
    for name in names:
        if name not in stream:
            raise HimalayaError(
                f"the stream {dataset['name']} no longer has the task '{name}' that the run has learnt"
            )
    return [stream[name] for name in names]


def _score(model: Any, tokenizer: Any, task: Task, settings: dict[str, Any]) -> Any:
    return evaluate_task(
        model,
        tokenizer,
        task,
        split=settings["evaluation"]["split"],
        batch_size=settings["evaluation"]["eval_batch_size"],
        max_length=settings["dataset"]["max_seq_length"],
    )


def _exact(model: PeftModel) -> list[Fit]:
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, HimalayaLayer)]
    prefix = "base_model.model."
    return [Fit(name.removeprefix(prefix), *layer.factors(model.active_adapter), None) for name, layer in layers]


def _fitted(adapter: LoadedAdapter, task: Task, max_length: int) -> list[Fit]:
    adapter.model.set_task(task.name)
    items = EncodedItems(adapter.tokenizer, [task], max_length).first(FIT_ITEMS)
    if len(items) < 2:
        raise HimalayaError(f"task '{task.name}' has too few training items to fit a LoRA to: 2 are needed at least")
    return fit_lora(adapter.model, [item["input_ids"] for item in items], padding_token(adapter.tokenizer))


def _write_lora(folder: Path, fits: Sequence[Fit], adapter: LoadedAdapter) -> None:
    """Write what PEFT, vLLM and the converters of llama.cpp and onnxruntime-genai read."""
    rank = len(fits[0].down)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_target_modules(adapter.model, [fit.module for fit in fits]),
        base_model_name_or_path=_public_name(adapter.backbone),
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
    state = {}
    for fit in fits:
        state[f"base_model.model.{fit.module}.lora_A.weight"] = fit.down.float().cpu().contiguous()
        state[f"base_model.model.{fit.module}.lora_B.weight"] = fit.up.float().cpu().contiguous()
    folder.mkdir()
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _target_modules(model: PeftModel, adapted: Sequence[str]) -> list[str]:
    """Names of a LoRA's targets: the last parts, as other servers want them, where those match no other module."""
    short = {name.rpartition(".")[2] for name in adapted}
    linear = [
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    matched = [name for name in linear if name.rpartition(".")[2] in short]
    return sorted(short) if sorted(matched) == sorted(adapted) else sorted(adapted)


def _public_name(backbone: str) -> str:
    """A backbone's name on the hub or in the catalogue; of a local folder the last part, which tells no path."""
    return Path(backbone).name if Path(backbone).is_dir() else backbone


def _write_card(folder: Path, export: TaskExport, backbone: str, items: int) -> None:
    explained = export.mean_explained
    what = EXACT.format(task=export.task) if explained is None else FITTED.format(items=items, explained=explained)
    data = ModelCardData(library_name="peft", tags=["lora", "himalaya-adapter"])
    if "/" in backbone:  # the hub refuses a card with another name
        data.base_model = backbone
    text = CARD.format(**asdict(export), backbone=backbone, what=what)
    (folder / "README.md").write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")), encoding="utf-8")


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its place when all is written, and leaves nothing if something fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        yield folder
        os.replace(folder, output)
