"""From a run config to the arguments of transformers' Trainer."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from himalaya_adapter.experiments.run_config import TrainingConfig

# The newer name of `gradient_checkpointing`, for which newer versions warn.
NEWER = "activation_checkpointing"
CHECKPOINTING = NEWER if NEWER in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"


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
    precision = training.mixed_precision
    if precision == "auto":  # the backbone computes in its own precision, the adapter in 32 bits
        precision = "no"
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
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        seed=training.seed + index,
        train_sampling_strategy="group_by_length",
        save_strategy="steps",
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
