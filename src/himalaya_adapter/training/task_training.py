"""Trains an adapted model on one task with transformers' Trainer, from the task's last checkpoint on."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PrinterCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from himalaya_adapter.evaluation.batching import PROMPTS_AT_ONCE, prompt_batches
from himalaya_adapter.experiments.run_config import TrainingConfig
from himalaya_adapter.identity import mark_complete
from himalaya_adapter.methods.continual import continual
from himalaya_adapter.methods.events import SkippedStep
from himalaya_adapter.streams import Task
from himalaya_adapter.training.batches import AnswerCollator, AnswerTrainer, EncodedItems
from himalaya_adapter.training.online_ewc import OnlineEWC
from himalaya_adapter.training.run_store import last_checkpoint
from himalaya_adapter.training.task_callback import TaskCallback, noted_events

# The newer name of `gradient_checkpointing`, for which newer versions warn.
NEWER = "activation_checkpointing"
CHECKPOINTING = NEWER if NEWER in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
CALIBRATION_ITEMS = 16
SECONDS = "seconds_of_steps"
CURVE_POINTS = 50


def training_arguments(
    training: TrainingConfig, run_id: str, index: int, items: int, checkpoints: Path
) -> TrainingArguments:
    """The Trainer's arguments for one task.

    Args:
        training: How the run trains.
        run_id: Its name, for trackers.
        index: Position of the task, which its seed depends on.
        items: Number of its training items.
        checkpoints: Where the Trainer keeps its checkpoints inside the task.
    """
    checkpointing: dict[str, Any] = {CHECKPOINTING: training.gradient_checkpointing}
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        run_name=run_id,
        num_train_epochs=training.task_epochs,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.grad_accum_steps,
        optim="adamw_torch",
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.max_grad_norm,
        **checkpointing,
        bf16=training.mixed_precision == "bf16",
        fp16=training.mixed_precision == "fp16",  # else the backbone has its own precision, and the adapter 32 bits
        use_cpu=not torch.cuda.is_available(),
        seed=training.seed + index,
        save_steps=training.save_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",  # the run has its trackers and its progress for all tasks
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        ddp_broadcast_buffers=False,  # the method keeps its own in step
    )
    most = training.max_updates_per_task
    if most is not None:  # the Trainer would repeat the items until it has done as many steps
        batches = math.ceil(items / (arguments.train_batch_size * arguments.world_size))
        steps = training.task_epochs * math.ceil(batches / training.grad_accum_steps)
        arguments.max_steps = min(most, steps)
    return arguments


class StreamCallback(TaskCallback):
    """Measures the time of the steps, and marks whole checkpoints. The runner itself starts and ends the task.

    What happened goes to the Trainer's log history, which travels with the checkpoints: see `noted_events`.

    Args:
        task: Name of the task, for messages.
        told: Called after each step with the task's state and what is logged of the step.
    """

    remedy = (
        "try a lower training.learning_rate or model.backbone.dtype=float32, with overwrite=true (the same command "
        "goes on from the last checkpoint)"
    )

    def __init__(self, task: str, told: Callable[[TrainerState, Mapping[str, float]], None] | None = None) -> None:
        super().__init__(task)
        self.told = told

    def start(self, state: TrainerState) -> None:
        """Go on with the time that earlier processes have taken."""
        self.clock = time.perf_counter() - seconds_of_steps(state)

    def end(self, state: TrainerState) -> None:
        """Nothing: the runner scores the task as well."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave out the checkpoint of the last step: resumed from it, the Trainer would take one step more."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time beside what the Trainer has just logged, and tell of it if it is a step."""
        state.log_history[-1][SECONDS] = time.perf_counter() - self.clock
        if self.told is not None and "loss" in kwargs["logs"]:
            self.told(state, kwargs["logs"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole, once every process has written its part of it."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            mark_complete(folder)


@dataclass(frozen=True)
class TrainedTask:
    """What training on a task has come to.

    Args:
        state: The Trainer's, with all that it has logged.
        events: What happened to the adapter, each with the number of its step: 0 before the first.
        resumed: Whether an earlier process had left a checkpoint.
    """

    state: TrainerState
    events: list[dict[str, Any]]
    resumed: bool

    def record(self) -> dict[str, Any]:
        """What is known of the steps. Skipped ones have no loss; penalties (EWC) are part of the others'.

        ``losses`` are means over at most 50 equal parts of the steps.
        """
        skipped = {event["step"] for event in self.events if event["event"] == SkippedStep.kind}
        steps = (entry for entry in self.state.log_history if "loss" in entry)
        losses = [entry["loss"] for entry in steps if entry["step"] not in skipped]
        parts = np.array_split(losses, min(len(losses), CURVE_POINTS)) if losses else []
        return {
            "steps": self.state.global_step,
            "resumed": self.resumed,
            "train_seconds": seconds_of_steps(self.state),
            "skipped_steps": len(skipped),
            "loss_first": losses[0] if losses else None,
            "loss_last": losses[-1] if losses else None,
            "losses": [round(float(part.mean()), 4) for part in parts],
        }


def train_task(
    model: PeftModel,
    tokenizer: Any,
    task: Task,
    examples: EncodedItems,
    arguments: TrainingArguments,
    callback: StreamCallback,
    ewc: OnlineEWC | None = None,
) -> TrainedTask:
    """Learn a task from its start to its end; what an earlier process has done of it is not done again.

    Args:
        model: The adapted model. It is left in the mode of training.
        tokenizer: The backbone's.
        task: Its name and its prompts, by which a method tells tasks apart.
        examples: What is trained on.
        arguments: The Trainer's; checkpoints of the task are looked for in its ``output_dir``.
        callback: Of the steps.
        ewc: What keeps earlier tasks, for a method that does not itself.

    Raises:
        HimalayaError: No room for the task, or too many steps whose gradient is not finite.
    """
    method, collator = continual(model), AnswerCollator(tokenizer.pad_token_id)
    with PartialState().main_process_first():  # it deletes what is damaged
        checkpoint = last_checkpoint(Path(str(arguments.output_dir)))
    first = collator(examples.first(CALIBRATION_ITEMS))
    inputs: dict[str, Any] = {key: value.to(model.device) for key, value in first.items()}
    inputs |= {"logits_to_keep": first["labels"].shape[1], "use_cache": False}
    events = [{**event.as_dict(), "step": 0} for event in method.start_task(task.name, inputs)]
    if method.recognises_tasks:
        # In random order: a memory that has seen enough looks at no more, and `prompt_batches` sorts by length.
        order = random.Random(arguments.seed).sample(task.train, len(task.train))
        for start in range(0, len(order), PROMPTS_AT_ONCE):
            part = order[start : start + PROMPTS_AT_ONCE]
            (batch,) = prompt_batches(tokenizer, part, examples.max_length, model.device)
            method.observe_prompts(batch.input_ids, batch.attention_mask)
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[callback],
        penalties=[*(ewc.penalties(model) if ewc else ()), method.penalty],
    )
    trainer.remove_callback(PrinterCallback)  # without a terminal it would fill standard output
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # Mixed precision wraps `forward`. A run that is resumed after this task scores without that wrapper, so this one
    # must too.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if getattr(arguments, CHECKPOINTING):
        model.gradient_checkpointing_disable()
    events += noted_events(trainer.state)
    events += [{**event.as_dict(), "step": trainer.state.global_step} for event in method.end_task()]
    return TrainedTask(trainer.state, events, resumed=checkpoint is not None)


def seconds_of_steps(state: TrainerState) -> float:
    """Seconds from a task's first step to the last one logged, over all processes that have worked on it."""
    return next((entry[SECONDS] for entry in reversed(state.log_history) if SECONDS in entry), 0.0)
