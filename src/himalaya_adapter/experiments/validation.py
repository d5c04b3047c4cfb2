"""Values of a run config that have the right type and still make no sense, refused before anything is loaded."""

import math
import re
from typing import Any

from omegaconf import OmegaConf

from himalaya_adapter import stream_metrics
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.keys import leaf_keys
from himalaya_adapter.experiments.method_options import adapter_options, method_of
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.experiments.search_config import check_search
from himalaya_adapter.registry import method_row

CHOICES: dict[str, tuple[str | None, ...]] = {
    "method": ("proposed", "comparative"),
    "model.backbone.quantisation": (None, "4-bit", "4-bit QLoRA"),
    "model.backbone.dtype": ("auto", "float32", "bfloat16", "float16"),
    "training.protocol": ("sequential", "independent", "joint", "frozen"),
    "training.optimizer": ("adamw",),
    "training.lr_scheduler": ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"),
    "training.mixed_precision": ("auto", "no", "bf16", "fp16"),
    "training.report_to": ("none", "tensorboard", "wandb", "mlflow", "trackio"),
    "evaluation.primary_metric": stream_metrics.keys("of matrix"),
    "evaluation.split": ("test", "validation"),
    "dataset.order": ("given", "reversed"),
    "evaluation.secondary_metric": (None, "cpu_latency_overhead"),
}
COUNTS = (
    *("dataset.max_seq_length", "training.task_epochs", "training.batch_size", "training.grad_accum_steps"),
    *("training.save_steps", "evaluation.eval_batch_size"),
)
OPTIONAL_COUNTS = (
    *("dataset.max_samples_per_task", "dataset.max_test_samples_per_task", "training.max_updates_per_task"),
    "dataset.num_tasks",
)
POSITIVE = ("training.learning_rate", "training.max_grad_norm")
OPTIONAL_POSITIVE = (
    *("model.adapter.total_parameter_budget_mb", "model.adapter.ewc_lambda"),
    "hardware.max_gpu_mem_gb",
)
NOT_NEGATIVE = ("training.weight_decay", "training.warmup_steps")
STORED_BITS = (3, 4, 8, 16)  # of an adapter's trained numbers
SEEDS = 2**31  # every library's generators take seeds below it


def check_run(run: RunConfig) -> None:
    """Check what types cannot say.

    Raises:
        HimalayaError: A value outside its range or choices; the message names the key, the value and what is right.
    """
    values = OmegaConf.structured(run)

    def value(key: str) -> Any:
        return OmegaConf.select(values, key)

    def require(right: bool, key: str, expected: str) -> None:
        if not right:
            raise HimalayaError(f"{key}={value(key)} of run '{run.run_id}': expected {expected}")

    plain = run.run_id == run.run_id.strip() and run.run_id not in ("", ".", "..") and not set(run.run_id) & set("/\\")
    require(plain, "run_id", "the name of a folder, without slashes")
    for key, choices in CHOICES.items():
        if value(key) not in choices:
            raise unknown_name(key, str(value(key)), [choice for choice in choices if choice is not None])
    for key in (*COUNTS, *OPTIONAL_COUNTS):
        required = key in COUNTS or value(key) is not None
        require(not required or value(key) >= 1, key, "a whole number of at least 1")
    for key in POSITIVE:
        require(math.isfinite(value(key)) and value(key) > 0, key, "a number above 0")
    for key in NOT_NEGATIVE:
        require(math.isfinite(value(key)) and value(key) >= 0, key, "a number of at least 0")
    rows = re.fullmatch(r"all|last|[1-9]\d{0,5}", run.evaluation.rows)
    require(rows is not None, "evaluation.rows", "all, last, or a number k for every k-th row")
    require(0 <= run.training.seed < SEEDS, "training.seed", f"a whole number from 0 to {SEEDS - 1}")
    for key in OPTIONAL_POSITIVE:
        right = value(key) is None or (math.isfinite(value(key)) and value(key) > 0)
        require(right, key, "a number above 0, or null")
    method, without_ewc = method_of(run), run.model.adapter.ewc_lambda is None
    twice = f"null: {method} protects earlier tasks itself"
    require(without_ewc or not method_row(method).protects_itself, "model.adapter.ewc_lambda", twice)
    per_task, in_sequence = run.model.adapter.per_task, run.training.protocol == "sequential"
    require(in_sequence or not per_task, "model.adapter.per_task", "false: training.protocol is not sequential")
    own = f"null: {method} has quantisation_bits, or rests on what it has learnt to the bit"
    ready = not (method_row(method).protects_itself or "quantisation_bits" in method_row(method).options.values())
    require(ready or run.model.adapter.bits is None, "model.adapter.bits", own)
    require(run.model.adapter.bits in (None, *STORED_BITS), "model.adapter.bits", f"null or one of {STORED_BITS}")
    earlier = without_ewc or (in_sequence and not per_task)
    require(earlier, "model.adapter.ewc_lambda", "null: only training.protocol=sequential has earlier tasks")
    require(run.model.backbone.frozen, "model.backbone.frozen", "true: only the adapter is trained")
    require(run.dataset.streaming is not False, "dataset.streaming", "true: tasks come one after another, and once")
    backbone, tokenizer = run.model.backbone.name, run.dataset.tokenizer
    require(tokenizer in (None, backbone), "dataset.tokenizer", f"{backbone}, the backbone's own, or null")
    require(run.dataset.languages != [], "dataset.languages", "a list of at least one language, or null")
    adapter_options(run)
    check_search(run.optuna, run.run_id, [key for key in leaf_keys(values) if not key.startswith("optuna.")])
