"""The schema of a run config: every key that a run honours, with its type and default. Other keys are refused."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from himalaya_adapter import stream_metrics
from himalaya_adapter.experiments.model_config import ModelConfig
from himalaya_adapter.experiments.schema import Count, Named, NotNegative, Number, Positive, Section, Switch, Whole
from himalaya_adapter.experiments.search_config import OptunaConfig

SEEDS = 2**31  # every library's generators take seeds below it
MOST_WARMUP = 1_000_000  # steps; more than any task has
Seed = Annotated[Whole, Field(ge=0, lt=SEEDS)]
Warmup = Annotated[NotNegative, Field(le=MOST_WARMUP)]
Rows = Annotated[
    str,
    Field(
        pattern=r"^(all|last|[1-9]\d{0,5})$",
        json_schema_extra={"expected": "all, last, or a number k for every k-th row"},
    ),
]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]
Tracker = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[stream_metrics.keys("of matrix")]


@dataclass
class DatasetConfig(Section):
    """The stream."""

    name: str
    """A packaged stream or the path of a YAML file."""
    max_samples_per_task: Count | None = None
    """Most training items of a task; ``null`` takes what the stream caps."""
    max_test_samples_per_task: Count | None = None
    """Most items that a task is scored on; which ones is the same for every run."""
    max_seq_length: Count = 512
    """Most tokens of an example; a prompt that is too long loses its beginning."""
    num_tasks: Count | None = None
    """How many tasks the stream is expected to have; a run on another number refuses to start."""
    languages: list[str] | None = None
    """The languages that are expected in it; ``multi`` stands for any others."""
    tokenizer: str | None = None
    """The backbone's name, if given: a model reads no other tokens than its own."""
    streaming: Switch | None = None
    """Always true: tasks come one after another, and none comes again."""
    order: Literal["given", "reversed"] = "given"
    """The stream's tasks as they stand there (``given``) or from the last to the first (``reversed``)."""


@dataclass
class TrainingConfig(Section):
    """How each task is trained."""

    protocol: Literal["sequential", "independent", "joint", "replay", "frozen"] = "sequential"
    """``sequential``: one adapter learns the tasks one after another. The others are bounds to compare with:
    ``independent``: as a method with ``model.adapter.per_task``; ``joint``: one adapter learns all tasks at once,
    mixed; ``replay``: as ``sequential``, and 1 % of the items of every task are kept and learnt again with each later
    one; ``frozen``: nothing is learnt or stored."""
    task_epochs: Count = 1
    """Passes over a task's training items."""
    max_updates_per_task: Count | None = None
    """Most optimiser steps of a task; ``null`` means as many as the epochs hold."""
    batch_size: Count = 8
    """Items per forward pass."""
    grad_accum_steps: Count = 1
    """Forward passes per optimiser step."""
    optimizer: Literal["adamw"] = "adamw"
    """``adamw``."""
    learning_rate: Positive = 1.0e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    lr_scheduler: Scheduler = "linear"
    """A scheduler name of transformers, such as ``linear``."""
    warmup_steps: Warmup = 0.06
    """Steps (an integer) or, below 1, the share of a task's steps in which the rate rises."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    gradient_checkpointing: Switch = False
    """Trade time for memory."""
    mixed_precision: Literal["auto", "bf16", "fp16"] = "auto"
    """``auto`` trains the backbone in the precision in which it is loaded (bf16 where the machine computes in it) and
    the adapter in 32 bits; ``bf16`` and ``fp16`` autocast, for a backbone in 32 bits."""
    save_steps: Count = 100
    """Steps between two checkpoints inside a task."""
    seed: Seed = 0
    """Seed of initialisation, order and sampling."""
    report_to: Tracker = "none"
    """Where losses go, on one running step, and scores, retained accuracy, forgetting, AUC and bytes, against the
    tasks learnt: ``none``, ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``."""
    similarity_threshold_tau: Number | None = None
    """The cosine from which a learnt atom shares a slot; HIMALAYA_STRICT grows below it."""
    fisher_projection_steps: Whole | None = None
    """Steps of HIMALAYA's consolidation of an atom before it is overwritten."""
    router_temperature_anneal: str | None = None
    """How the temperature of HIMALAYA_STRICT's gates falls over a task: ``linear``."""


@dataclass
class EvaluationConfig(Section):
    """How a task is scored."""

    primary_metric: Metric = "retained_accuracy_auc"
    """The metric that a search optimises."""
    split: Literal["test", "validation"] = "test"
    """The items that tasks are scored on: ``test``, or ``validation`` for whatever is chosen by the score."""
    rows: Rows = "all"
    """After which tasks all tasks so far are scored: ``all``, ``last``, or a number k for every k-th and the last.
    After the others only the task just learnt is scored."""
    eval_batch_size: Count = 16
    """Prompts per forward pass."""
    secondary_metric: Literal["cpu_latency_overhead"] | None = None
    """``cpu_latency_overhead``: ``himalaya run`` measures it at its end, on the CPU of its own machine."""
    cpu_latency_device: str | None = None
    """The device that was planned for, such as ``raspberry-pi-4``; a run names the one that it has."""


@dataclass
class HardwareConfig(Section):
    """The machine that the run was planned for; a run on a smaller one starts with a warning."""

    gpu_type: str | None = None
    """Name of the GPU."""
    max_gpu_mem_gb: Positive | None = None
    """Its memory (GB of 10^9 bytes)."""


@dataclass
class RunConfig(Section):
    """One run: one method on one stream."""

    run_id: Named
    """Name of the run's folder."""
    method: Literal["proposed", "comparative"]
    """``proposed`` or ``comparative``."""
    method_name: Named
    """The name that reports print."""
    model: ModelConfig
    """Backbone and adapter."""
    dataset: DatasetConfig
    """The stream."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How a task is learnt."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How a task is scored."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """The machine that it was planned for."""
    optuna: OptunaConfig = field(default_factory=OptunaConfig)
    """What a search would vary; a plain run does not search."""
