"""A run small enough for tests: a random Llama on disk, a stream of three tasks of a user's own, and its run config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TASKS = ("parity", "colour_word", "echo")
COLOURS = ("blue", "green", "red", "white")
ADAPTERS: dict[str, dict[str, Any]] = {
    "HIMALAYA": {"type": "HIMALAYA", "options": {"core_atoms": 4, "elastic_atoms": 6, "hidden_params": 4000}},
    "LORA": {"type": "LORA", "options": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]}},
}


def write_backbone(
    folder: Path, build: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerFast, **changes: Any
) -> Path:
    """Save a tiny model and its tokenizer as ``save_pretrained`` does."""
    build(**changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_stream(folder: Path) -> Path:
    """Write ``rows.jsonl`` and ``stream.yaml``: a classification, an extraction and a generation task."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": str(number),
            "number": str(number),
            "parity": "yes" if number % 2 == 0 else "no",
            "sentence": f"the {COLOURS[number % 4]} dog {number} was on the sofa" + " and so on" * (number % 5),
            "colour": COLOURS[number % 4],
        }
        for number in range(160)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "language": "en",
        "source": {"files": "rows.jsonl", "group": "id"},
        "caps": {"train": 24, "validation": 2, "test": 8},
    }
    parity = {
        **common,
        **{"name": "parity", "kind": "classification", "labels": ["yes", "no"], "metric": "accuracy"},
        **{"template": "Is {number} even?\nAnswer:", "target": "{parity}", "max_new_tokens": 2},
    }
    colour = {
        **common,
        **{"name": "colour_word", "kind": "extraction", "metric": "token_f1", "max_new_tokens": 4},
        **{"template": "Text: {sentence}\nColour:", "target": "{colour}"},
    }
    echo = {
        **common,
        **{"name": "echo", "kind": "generation", "metric": "chrf", "max_new_tokens": 6},
        **{"template": "Repeat {number}:", "target": "{number} {colour}"},
    }
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "tasks": [parity, colour, echo]}), encoding="utf-8")
    return path


def write_run(folder: Path, backbone: Path, stream: Path, method: str, **training: Any) -> Path:
    """Write the run config ``<method>.yaml``, whose run id is the method in lower case; returns its path."""
    content = {
        "run_id": method.lower(),
        "method": "proposed" if method == "HIMALAYA" else "comparative",
        "method_name": method,
        "model": {"backbone": {"name": str(backbone), "dtype": "float32"}, "adapter": ADAPTERS[method]},
        "dataset": {"name": str(stream), "max_seq_length": 96},
        "training": {"batch_size": 4, "learning_rate": 0.01, "save_steps": 2} | training,
        "evaluation": {"eval_batch_size": 8},
    }
    path = folder / f"{method.lower()}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
