"""One plain PEFT LoRA per task, for servers that know LoRA only, and what the task's score loses by it."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from peft import PeftModel, PeftType

from himalaya_adapter.backbones.catalogue import public_name
from himalaya_adapter.deploy.adapter_folder import IN_A_RUN, LoadedAdapter, load_adapter
from himalaya_adapter.deploy.lora_fit import Fit, fit_lora
from himalaya_adapter.deploy.lora_folder import write_card, write_lora
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.batching import padding_token
from himalaya_adapter.evaluation.scoring import TaskScore, evaluate_task
from himalaya_adapter.methods.himalaya import HimalayaLayer
from himalaya_adapter.storage import IN_USE, in_use, whole_folder, write_json
from himalaya_adapter.streams import Limits, Task, load_stream
from himalaya_adapter.training.encoded_items import EncodedItems

logger = logging.getLogger(__name__)
FIT_ITEMS = 200
TABLE_FILE = "lora_export.json"


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
        explained: Per module, the share of the update on held-out tokens that the fit reproduces; empty if the LoRA
            is not fitted to the routed adapter but equals the frozen one.
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
    explained: tuple[float, ...]

    @property
    def mean_explained(self) -> float | None:
        """Mean over the modules of the share explained; nothing if the LoRA is exact."""
        return sum(self.explained) / len(self.explained) if self.explained else None


class Converted(NamedTuple):
    """A task's LoRA before it is scored."""

    task: Task
    routed: TaskScore
    frozen: TaskScore
    fits: list[Fit]


def export_lora(run: Path, output: Path, tasks: Sequence[str] = (), backbone: str | None = None) -> list[TaskExport]:
    """Write one LoRA per task of a finished HIMALAYA run, each in a folder of the task's name, and a table of scores.

    With ``placement="weights"`` a LoRA is the frozen adapter, exactly (rank 1); with ``"residual_stream"`` it is
    fitted to the adapter on training items of the run's stream (see `lora_fit`). Scores are over the items that the
    run itself was scored on.

    Args:
        run: The run's folder, or its ``adapter`` or ``release`` folder.
        output: A new or empty folder.
        tasks: Which tasks; all that the run has learnt by default.
        backbone: As for `load_adapter`.

    Raises:
        HimalayaError: No such run, task or stream, an adapter of another method, a folder that is not empty.
    """
    if in_use(output):
        raise HimalayaError(IN_USE.format(output))
    config = (run.parent if run.name in IN_A_RUN else run) / "config.yaml"
    if not config.is_file():
        raise HimalayaError(f"{run} is no run's folder: a LoRA is fitted to items of the run's stream")
    adapter = load_adapter(run, backbone=backbone)
    _check_method(adapter)
    names = adapter.chosen_tasks(tasks)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    chosen = _load_tasks(settings, names)
    told = public_name(adapter.backbone)
    with whole_folder(output) as folder:
        converted = [_convert(adapter, task, folder / task.name, settings) for task in chosen]
        exports = _measure(adapter, converted, folder, settings)
        for export in exports:
            write_card(folder / export.task, told, asdict(export), export.mean_explained)
        write_json(folder / TABLE_FILE, {"backbone": told, "tasks": [asdict(export) for export in exports]})
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


def _load_tasks(settings: dict[str, Any], names: Sequence[str]) -> list[Task]:
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


def _convert(adapter: LoadedAdapter, task: Task, folder: Path, settings: dict[str, Any]) -> Converted:
    """Score the adapter on a task and write the task's LoRA."""
    adapter.model.set_task(task.name)
    routed = _score(adapter.model, adapter.tokenizer, task, settings)
    adapter.model.freeze_routing(task.name)
    frozen = _score(adapter.model, adapter.tokenizer, task, settings)
    exact = adapter.model.supports_lora_conversion()
    fits = _exact(adapter.model) if exact else _fitted(adapter, task, settings["dataset"]["max_seq_length"])
    write_lora(folder, fits, adapter.model, public_name(adapter.backbone))
    logger.info("%s: %.3f per token, %.3f frozen; LoRA written", task.name, routed.score, frozen.score)
    return Converted(task, routed, frozen, fits)


def _measure(
    adapter: LoadedAdapter, converted: Sequence[Converted], folder: Path, settings: dict[str, Any]
) -> list[TaskExport]:
    """Score the LoRAs, loaded from their folders into the backbone without its HIMALAYA adapter."""
    base, model = adapter.model.unload(), None
    exports = []
    for index, (task, routed, frozen, fits) in enumerate(converted):
        if model is None:
            model = PeftModel.from_pretrained(base, folder / task.name, adapter_name=str(index)).eval()
        else:
            model.load_adapter(str(folder / task.name), adapter_name=str(index))
            model.set_adapter(str(index))
        lora = _score(model, adapter.tokenizer, task, settings)
        export = TaskExport(
            task=task.name,
            metric=lora.metric,
            split=settings["evaluation"]["split"],
            n=lora.n,
            routed=routed.score,
            frozen=frozen.score,
            lora=lora.score,
            loss=routed.score - lora.score,
            rank=len(fits[0].down),
            explained=tuple(fit.explained for fit in fits if fit.explained is not None),
        )
        logger.info("%s: %.3f per token, %.3f as LoRA", task.name, export.routed, export.lora)
        exports.append(export)
    return exports


def _score(model: Any, tokenizer: Any, task: Task, settings: dict[str, Any]) -> TaskScore:
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
