"""The source's run configs, leaf by leaf, and what the tests change each key of them to."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.composition import CONF


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested sections by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf
        for key, entry in value.items()
        for path, leaf in leaves(entry, f"{prefix}.{key}" if prefix else key).items()
    }


def read(name: str) -> Any:
    """A packaged run config as it is written."""
    return yaml.safe_load((CONF / "run" / f"{name}.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class SourceRun:
    """A run config that the package has from the source.

    Args:
        name: Of its file.
        sha256: Of its bytes.
        method: The method that it runs.
        options: Another value of each key that sets an option of the method.
        values: Another value of each key that other parts of a run read under its own name.
        refused: Keys that have one right value in this run: another one, and what is said about it.
    """

    name: str
    sha256: str
    method: str
    options: dict[str, Any]
    values: dict[str, Any]
    refused: dict[str, tuple[Any, str]]

    def changed(self, path: str, value: Any, folder: Path) -> RunConfig:
        """The composed run with one leaf of the file changed."""
        content = copy.deepcopy(read(self.name))
        section = content
        *parents, last = path.split(".")
        for parent in parents:
            section = section[parent]
        assert last in section
        assert section[last] != value
        section[last] = value
        file = folder / "changed.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return compose_run([f"run={file}"]).run


# What both have in common.
VALUES = {
    "run_id": "other",
    "method_name": "other",
    "model.backbone.quantisation": None,
    "model.adapter.total_parameter_budget_mb": 3.0,
    "dataset.name": "demo_stream_6",
    "dataset.num_tasks": 6,
    "dataset.max_samples_per_task": 100,
    "dataset.max_seq_length": 512,
    "training.task_epochs": 2,
    "training.max_updates_per_task": 100,
    "training.batch_size": 4,
    "training.learning_rate": 1e-3,
    "training.lr_scheduler": "cosine",
    "training.warmup_steps": 0,
    "training.gradient_checkpointing": False,
    "training.grad_accum_steps": 2,
    "training.mixed_precision": "fp16",
    "evaluation.primary_metric": "forgetting",
    "evaluation.secondary_metric": None,
    "evaluation.eval_batch_size": 8,
    "evaluation.cpu_latency_device": "other",
    "hardware.gpu_type": "H200",
    "hardware.max_gpu_mem_gb": 140,
    "optuna.n_trials": 3,
    "optuna.direction": "minimize",
    "optuna.search_space.learning_rate.type": "uniform",
    "optuna.search_space.learning_rate.low": 2e-5,
    "optuna.search_space.learning_rate.high": 2e-4,
    "optuna.search_space.weight_decay.low": 0.001,
    "optuna.search_space.weight_decay.high": 0.02,
}
REFUSED = {
    "model.backbone.name": ("smollm2-135m", "dataset.tokenizer=NousResearch/Llama-2-7b-hf"),
    "model.backbone.frozen": (False, "expected true: only the adapter is trained"),
    "dataset.tokenizer": ("gpt2", "dataset.tokenizer=gpt2 of run '{name}': expected NousResearch/Llama-2-7b-hf"),
    "dataset.streaming": (False, "expected true: tasks come one after another"),
    "training.optimizer": ("sgd", 'found "sgd", expected one of adamw'),
    "optuna.search_space.weight_decay.type": ("loguniform", "`low > 0` must hold for `log=True`"),
}
HIMALAYA = SourceRun(
    name="proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters",
    sha256="c65b06b297efc657b9279521c22ff0d65016ad4f5ced8707cbed8b2cf06bee4c",
    method="HIMALAYA_STRICT",
    options={
        "model.adapter.core_dictionary.num_atoms": 20,
        "model.adapter.elastic_dictionary.max_atoms": 12,
        "model.adapter.elastic_dictionary.index": "scan",
        "model.adapter.elastic_dictionary.quantisation_bits": 4,
        "model.adapter.router.hidden_params": 40000,
        "model.adapter.router.expected_active_atoms": 2,
        "model.adapter.router.temperature_init": 0.5,
        "model.kd_tree.fanout": 16,
        "model.kd_tree.leaf_size": 2,
        "training.similarity_threshold_tau": 0.9,
        "training.fisher_projection_steps": 10,
    },
    values=VALUES
    | {
        "method": "comparative",
        "dataset.languages": ["en"],
        "training.weight_decay": 0.0,
        "optuna.search_space.similarity_threshold_tau.type": "loguniform",
        "optuna.search_space.similarity_threshold_tau.low": 0.8,
        "optuna.search_space.similarity_threshold_tau.high": 0.85,
        "optuna.search_space.kd_tree_fanout.choices": [4, 8],
        "optuna.search_space.router_temperature_init.type": "loguniform",
        "optuna.search_space.router_temperature_init.low": 0.6,
        "optuna.search_space.router_temperature_init.high": 1.5,
    },
    refused=REFUSED
    | {
        "model.adapter.type": ("LORA", "is a key of HIMALAYA, model.adapter.type is LORA"),
        "model.adapter.core_dictionary.init": ("random", "init=random of run '{name}': expected isotropic"),
        "model.adapter.coeff_precision_bits": (4, "coeff_precision_bits=4 of run '{name}': expected 8"),
        "model.norm_rescaling": (False, "model.norm_rescaling=false of run '{name}': expected true; the bound on"),
        "training.router_temperature_anneal": ("cosine", "expected linear; the gates' temperature falls linearly"),
        "optuna.search_space.kd_tree_fanout.type": ("int", "'int' takes low and high"),
    },
)
LILAC = SourceRun(
    name="comparative-1-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters",
    sha256="20d6931cd8fca025bad5938206b64f2d21474288bffb57040d20b4651834512a",
    method="LILAC",
    options={
        "model.adapter.lora_rank": 8,
        "model.adapter.dictionary_size": 32,
        "model.adapter.quantisation_bits": 4,
    },
    values=VALUES
    | {
        "method": "proposed",
        "model.adapter.ewc_lambda": 0.1,
        "training.weight_decay": 0.01,
        "optuna.search_space.lora_rank.choices": [2, 4],
        "optuna.search_space.ewc_lambda.type": "uniform",
        "optuna.search_space.ewc_lambda.low": 0.1,
        "optuna.search_space.ewc_lambda.high": 0.5,
    },
    refused=REFUSED
    | {
        "model.adapter.type": ("LORA", "is a key of LILAC, model.adapter.type is LORA"),
        "optuna.search_space.lora_rank.type": ("int", "'int' takes low and high"),
    },
)
SOURCES = (HIMALAYA, LILAC)
