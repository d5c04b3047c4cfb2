"""The schema of a run config: every key that a run honours, with its type and default. Other keys are refused."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from himalaya_adapter.experiments.model_config import ModelConfig
from himalaya_adapter.experiments.search_config import OptunaConfig


@dataclass
class DatasetConfig:
    """The stream.

    Args:
        name: A packaged stream or the path of a YAML file.
        max_samples_per_task: Most training items of a task; ``null`` takes what the stream caps.
        max_test_samples_per_task: Most items that a task is scored on; which ones is the same for every run.
        max_seq_length: Most tokens of an example; a prompt that is too long loses its beginning.
        num_tasks: How many tasks the stream is expected to have; a run on another number refuses to start.
        languages: The languages that are expected in it; ``multi`` stands for any others.
        tokenizer: The backbone's name, if given: a model reads no other tokens than its own.
        streaming: Always true: tasks come one after another, and none comes again.
        order: The stream's tasks as they stand there (``given``) or from the last to the first (``reversed``).
    """

    name: str = MISSING
    max_samples_per_task: int | None = None
    max_test_samples_per_task: int | None = None
    max_seq_length: int = 512
    num_tasks: int | None = None
    languages: list[str] | None = None
    tokenizer: str | None = None
    streaming: bool | None = None
    order: str = "given"


@dataclass
class TrainingConfig:
    """How each task is trained.

    Args:
        protocol: ``sequential``: one adapter learns the tasks one after another. The others are bounds to compare
            with: ``independent``: as a method with ``model.adapter.per_task``;
            ``joint``: one adapter learns all tasks at once, mixed; ``frozen``: nothing is learnt or stored.
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
        similarity_threshold_tau: The cosine from which a learnt atom shares a slot; HIMALAYA_STRICT grows below it.
        fisher_projection_steps: Steps of HIMALAYA's consolidation of an atom before it is overwritten.
        router_temperature_anneal: How the temperature of HIMALAYA_STRICT's gates falls over a task: ``linear``.
    """

    protocol: str = "sequential"
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
    similarity_threshold_tau: float | None = None
    fisher_projection_steps: int | None = None
    router_temperature_anneal: str | None = None


@dataclass
class EvaluationConfig:
    """How a task is scored.

    Args:
        primary_metric: The metric that a search optimises.
        split: The items that tasks are scored on: ``test``, or ``validation`` for whatever is chosen by the score.
        rows: After which tasks all tasks so far are scored: ``all``, ``last``, or a number k for every k-th and the
            last. After the others only the task just learnt is scored.
        eval_batch_size: Prompts per forward pass.
        secondary_metric: ``cpu_latency_overhead``: belongs to a device; a run says that it does not measure it.
        cpu_latency_device: That device, such as ``raspberry-pi-4``.
    """

    primary_metric: str = "retained_accuracy_auc"
    split: str = "test"
    rows: str = "all"
    eval_batch_size: int = 16
    secondary_metric: str | None = None
    cpu_latency_device: str | None = None


@dataclass
class HardwareConfig:
    """The machine that the run was planned for; a run on a smaller one starts with a warning.

    Args:
        gpu_type: Name of the GPU.
        max_gpu_mem_gb: Its memory (GB of 10^9 bytes).
    """

    gpu_type: str | None = None
    max_gpu_mem_gb: float | None = None


@dataclass
class RunConfig:
    """One run: one method on one stream.

    Args:
        run_id: Name of the run's folder.
        method: ``proposed`` or ``comparative``.
        method_name: The name that reports print.
        model: Backbone and adapter.
        dataset: The stream.
        training: How a task is learnt.
        evaluation: How a task is scored.
        hardware: The machine that it was planned for.
        optuna: What a search would vary; a plain run does not search.
    """

    run_id: str = MISSING
    method: str = MISSING
    method_name: str = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    optuna: OptunaConfig = field(default_factory=OptunaConfig)
