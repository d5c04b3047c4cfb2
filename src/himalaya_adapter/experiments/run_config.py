"""The schema of a run config: every key that a run honours, with its type and default. Other keys are refused."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class BackboneConfig:
    """The frozen language model.

    Args:
        name: A name of the catalogue (``smollm2-135m``), a folder, or a hub id.
        quantisation: ``null``, ``4-bit`` or ``4-bit QLoRA``, which mean the same NF4 loading.
        frozen: Always true: only the adapter is trained.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    """

    name: str = MISSING
    quantisation: str | None = None
    frozen: bool = True
    dtype: str = "auto"


@dataclass
class AdapterConfig:
    """The adapter: its method and the options of that method's PEFT config.

    Args:
        type: ``HIMALAYA`` or the name of any PEFT method (``LORA``).
        options: Fields of the method's PEFT config that differ from its defaults.
        total_parameter_budget_mb: The run refuses to start if the saved adapter would be larger (MB of 10^6 bytes).
    """

    type: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    total_parameter_budget_mb: float | None = None


@dataclass
class ModelConfig:
    """Backbone and adapter."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass
class DatasetConfig:
    """The stream.

    Args:
        name: A packaged stream or the path of a YAML file.
        max_samples_per_task: Most training items of a task; ``null`` takes what the stream caps.
        max_test_samples_per_task: Most test items of a task.
        max_seq_length: Most tokens of an example; a prompt that is too long loses its beginning.
    """

    name: str = MISSING
    max_samples_per_task: int | None = None
    max_test_samples_per_task: int | None = None
    max_seq_length: int = 512


@dataclass
class TrainingConfig:
    """How each task is trained.

    Args:
        task_epochs: Passes over a task's training items.
        max_updates_per_task: Most optimiser steps of a task; ``null`` means as many as the epochs hold.
        batch_size: Items per forward pass.
        grad_accum_steps: Forward passes per optimiser step.
        optimizer: ``adamw``.
        learning_rate: Peak learning rate.
        weight_decay: AdamW's weight decay.
        lr_scheduler: A scheduler name of transformers, such as ``linear``.
        warmup_steps: Steps (an integer) or, below 1, the share of a task's steps in which the rate rises.
        max_grad_norm: Gradients are clipped to this norm.
        gradient_checkpointing: Trade time for memory.
        mixed_precision: ``auto`` trains the backbone in the precision in which it is loaded (bf16 where the machine
            computes in it) and the adapter in 32 bits; ``bf16`` and ``fp16`` autocast, for a backbone in 32 bits.
        save_steps: Steps between two checkpoints inside a task.
        seed: Seed of initialisation, order and sampling.
        report_to: Trackers of the Trainer: ``none``, ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``.
    """

    task_epochs: int = 1
    max_updates_per_task: int | None = None
    batch_size: int = 8
    grad_accum_steps: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1.0e-3
    weight_decay: float = 0.0
    lr_scheduler: str = "linear"
    warmup_steps: float = 0.06
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    mixed_precision: str = "auto"
    save_steps: int = 100
    seed: int = 0
    report_to: str = "none"


@dataclass
class EvaluationConfig:
    """How a task is scored.

    Args:
        primary_metric: The metric that a search maximises.
        eval_batch_size: Prompts per forward pass.
    """

    primary_metric: str = "retained_accuracy_auc"
    eval_batch_size: int = 16


@dataclass
class RunConfig:
    """One run: one method on one stream.

    Args:
        run_id: Name of the run's folder.
        method: ``proposed`` or ``comparative``.
        method_name: The name that reports print.
    """

    run_id: str = MISSING
    method: str = MISSING
    method_name: str = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
