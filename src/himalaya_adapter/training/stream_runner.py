"""Learns a stream task by task, scores after each, and can be killed and started again at any moment."""

import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from rich.progress import Progress
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import PrinterCallback, TrainingArguments

from himalaya_adapter.backbones import Backbone, load_backbone
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.drift import base_drift
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.methods.construction import adapt, method_config
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Limits, Stream, Task, load_stream
from himalaya_adapter.streams.encoding import IGNORED_LABEL, encode_item
from himalaya_adapter.streams.plain_text import held_out_text
from himalaya_adapter.training.batches import AnswerCollator, AnswerTrainer
from himalaya_adapter.training.callback import StreamCallback
from himalaya_adapter.training.environment import describe_environment
from himalaya_adapter.training.run_store import BEFORE, COMPLETE, RunStore, is_complete
from himalaya_adapter.training.summary import summarise

logger = logging.getLogger(__name__)
BYTES_PER_MB = 1_000_000
CALIBRATION_ITEMS = 16
DRIFT_TOKENS = 128
ADAPTER_FILE = "adapter_model.safetensors"


def run_stream(config: RunConfig, results_dir: Path, *, overwrite: bool = False) -> Path:
    """Run one method through one stream; returns the run's folder.

    Finished parts are read back, never computed again: the same call continues an interrupted run and ends with the
    same matrix, bit for bit; a finished run is left as it is.

    Args:
        config: The run.
        results_dir: Where run folders lie.
        overwrite: Delete an existing folder of this run first.

    Raises:
        HimalayaError: Anything a user can mend, in one line.
    """
    check_run(config)
    folder = results_dir / config.run_id
    store = RunStore(folder, asdict(config), overwrite=overwrite)
    if store.finished:
        logger.warning("%s is finished; nothing to do (overwrite=true starts it anew)", folder)
        return folder
    adapter = method_config(config.model.adapter.type, _seeded_options(config))
    limits = Limits(train=config.dataset.max_samples_per_task, test=config.dataset.max_test_samples_per_task)
    stream = load_stream(config.dataset.name, limits=limits)
    quantisation = "4-bit" if config.model.backbone.quantisation else None
    backbone = load_backbone(config.model.backbone.name, quantisation=quantisation, dtype=config.model.backbone.dtype)
    model = adapt(backbone.model, adapter, config.training.seed)
    _check_budget(model, config.model.adapter.total_parameter_budget_mb)
    # From here on the folder is written to: whatever could be wrong with the config has been found by now.
    store.begin(describe_environment(config, stream, backbone))
    StreamRunner(config, store, stream, backbone, model).run()
    return folder


def _seeded_options(config: RunConfig) -> dict[str, Any]:
    options = dict(config.model.adapter.options)
    if config.model.adapter.type.upper() == "HIMALAYA":
        options.setdefault("seed", config.training.seed)
    return options


def _check_budget(model: PeftModel, budget: float | None) -> None:
    if budget is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = (Path(folder) / ADAPTER_FILE).stat().st_size
    if size > budget * BYTES_PER_MB:
        raise HimalayaError(
            f"the adapter takes {size / BYTES_PER_MB:.3g} MB, model.adapter.total_parameter_budget_mb allows "
            f"{budget}: lower its sizes in model.adapter.options or raise the budget"
        )


class StreamRunner:
    """Drives one adapted model through one stream.

    Args:
        config: The run.
        store: Its folder.
        stream: The tasks.
        backbone: The frozen model and its tokenizer.
        model: The backbone with its adapter.
    """

    def __init__(
        self, config: RunConfig, store: RunStore, stream: Stream, backbone: Backbone, model: PeftModel
    ) -> None:
        self.config = config
        self.store = store
        self.stream = stream
        self.tokenizer = backbone.tokenizer
        self.model = model

    def run(self) -> None:
        """Learn what is not yet learned, score what is not yet scored, write the results."""
        learned = self.store.learned()
        if learned:
            self._load_adapter(self.store.adapter_path(len(learned) - 1))
        cells = len(self.stream.tasks) * (len(self.stream.tasks) + 3) // 2
        with Progress(disable=not sys.stderr.isatty()) as progress:
            scoring = progress.add_task("scoring", total=cells)
            for index, _ in enumerate(self.stream.tasks):
                self._score(BEFORE, index)
                progress.advance(scoring)
            for index, task in enumerate(self.stream.tasks):
                if index >= len(learned):
                    self._learn(index, task)
                for seen in range(index + 1):
                    self._score(index, seen)
                    progress.advance(scoring)
        self._finish()

    # Learning --------------------------------------------------------------------------------------------------

    def _learn(self, index: int, task: Task) -> None:
        training = self.config.training
        length = self.config.dataset.max_seq_length
        examples = [encode_item(self.tokenizer, item, length) for item in task.train]
        collator = AnswerCollator(self.tokenizer.pad_token_id)
        checkpoint = self.store.last_checkpoint(index)
        if hasattr(self.model, "start_task"):
            first = collator(examples[:CALIBRATION_ITEMS])
            prompt = first["input_ids"].shape[1] - first["labels"].shape[1]
            first["labels"] = pad(first["labels"], (prompt, 0), value=IGNORED_LABEL)
            self.model.start_task(task.name, {key: value.to(self.model.device) for key, value in first.items()})
        # Beside the checkpoints, which are deleted when the task is learnt.
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(self.store.folder / "tensorboard"))
        trainer = AnswerTrainer(
            model=self.model,
            args=self._arguments(index),
            train_dataset=Dataset.from_list(examples),
            data_collator=collator,
            processing_class=self.tokenizer,
            callbacks=[StreamCallback(self.model)],
        )
        trainer.remove_callback(PrinterCallback)  # without a terminal it would fill standard output
        logger.info("task %d of %d: learning %s", index + 1, len(self.stream.tasks), task.name)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - started
        # Mixed precision wraps `forward`. A run that is resumed after this task scores without that wrapper, so this
        # one must too.
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        record = {
            "event": "task_end",
            "index": index,
            "task": task.name,
            "steps": trainer.state.global_step,
            "resumed": checkpoint is not None,
            "train_seconds": seconds,
            "loss_first": losses[0],
            "loss_last": losses[-1],
            **self._method_record(),
        }
        if training.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        self.model.save_pretrained(str(self.store.unfinished_adapter))
        record["stored_bytes"] = (self.store.unfinished_adapter / ADAPTER_FILE).stat().st_size
        self.store.write_learned(index, record)

    def _arguments(self, index: int) -> TrainingArguments:
        training = self.config.training
        precision = training.mixed_precision
        if precision == "auto":  # the backbone computes in its own precision, the adapter in 32 bits
            precision = "no"
        return TrainingArguments(
            output_dir=str(self.store.task_checkpoints(index)),
            run_name=f"{self.config.run_id}-{index}",
            num_train_epochs=training.task_epochs,
            max_steps=training.max_updates_per_task or -1,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.grad_accum_steps,
            optim="adamw_torch",
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            lr_scheduler_type=training.lr_scheduler,
            warmup_steps=training.warmup_steps,
            max_grad_norm=training.max_grad_norm,
            gradient_checkpointing=training.gradient_checkpointing,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=not torch.cuda.is_available(),
            seed=training.seed + index,
            train_sampling_strategy="group_by_length",
            save_strategy="steps",
            save_steps=training.save_steps,
            save_total_limit=2,
            logging_steps=1,
            report_to=training.report_to,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=not sys.stderr.isatty(),
        )

    def _method_record(self) -> dict[str, Any]:
        """End the task and say what the method tells about it; nothing for a method without a stream of its own."""
        if not hasattr(self.model, "end_task"):
            return {}
        self.model.end_task()
        parts = self.model.stored_bytes()
        return {**self.model.norm_certificate(), **self.model.task_statistics(), "stored_bytes_by_part": parts}

    def _load_adapter(self, folder: Path) -> None:
        if not is_complete(folder):
            raise HimalayaError(
                f"{folder} is damaged, and no earlier adapter is kept: start the run anew with overwrite=true"
            )
        set_peft_model_state_dict(self.model, load_file(folder / ADAPTER_FILE))

    # Scoring ---------------------------------------------------------------------------------------------------

    def _score(self, row: int | str, index: int) -> None:
        if self.store.score(row, index) is not None:
            return
        task = self.stream.tasks[index]
        if row == BEFORE:
            with self.model.disable_adapter():
                self.store.write_score(row, index, self._evaluate(task))
            return
        if hasattr(self.model, "set_task"):
            self.model.set_task(task.name)
        self.store.write_score(row, index, self._evaluate(task))

    def _evaluate(self, task: Task) -> Mapping[str, Any]:
        score = evaluate_task(
            self.model,
            self.tokenizer,
            task,
            batch_size=self.config.evaluation.eval_batch_size,
            max_length=self.config.dataset.max_seq_length,
        )
        return {**score.cell(), "item_scores": list(score.item_scores)}

    # Results ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        last = self.store.adapter_path(len(self.stream.tasks) - 1)
        shutil.rmtree(self.store.folder / "adapter", ignore_errors=True)
        shutil.copytree(last, self.store.folder / "adapter", ignore=shutil.ignore_patterns(COMPLETE))
        drift = base_drift(
            self.model,
            self.tokenizer,
            held_out_text(),
            batch_size=self.config.evaluation.eval_batch_size,
            max_length=DRIFT_TOKENS,
        )
        trainable, _ = self.model.get_nb_trainable_parameters()
        measured = {
            "base_drift": drift,
            "trainable_parameters": trainable,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        matrix, metrics = summarise(self.config, self.stream, self.store, measured)
        write_json(self.store.folder / "matrix.json", matrix)
        write_json(self.store.folder / "metrics.json", metrics)  # last: its presence says that the run is finished


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the accelerator if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
