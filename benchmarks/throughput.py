"""Speed of HIMALAYA in PyTorch against the bare frozen model and PEFT's LoRA r=8, as ratios measured in one process.

Run: python benchmarks/throughput.py [--backbone smollm2-135m] [--dtype float32] [--rounds 12] [--output FILE.json]
     python benchmarks/throughput.py --compile  (training steps of models that torch.compile has compiled)

Three kinds of work, each in rounds in which every model takes its turn, so that a busy moment of the machine hits all
alike: one training step; reading a prompt (prefill, batch 1); writing tokens one by one from a KV cache (decode, batch
1). LoRA adapts q, k, v and o and is not merged. HIMALAYA is measured in both placements: after the layers, and in the
weights of all linear modules, which is merged where nothing is trained. A ratio is a model's time divided by the bare
model's in the same round. Bare training is a forward and a backward pass down to the first layer, without parameters
to train. A CUDA device is used where there is one.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.storage import write_json
from himalaya_adapter.training.environment import processor_name

WARM_UP = 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BARE, LORA, HIMALAYA, IN_WEIGHTS = "bare", "LoRA r=8", "HIMALAYA", "HIMALAYA in the weights"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS: dict[str, PeftConfig] = {
    LORA: LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=LORA_TARGETS),
    HIMALAYA: HimalayaConfig(task_type="CAUSAL_LM"),
    IN_WEIGHTS: HimalayaConfig(task_type="CAUSAL_LM", placement="weights"),
}


def main() -> None:
    arguments = _arguments()
    models = {BARE: _bare(arguments)} | {name: _adapted(arguments, config) for name, config in CONFIGS.items()}
    model = models[BARE][0]
    vocabulary, dtype = model.config.vocab_size, str(model.dtype).removeprefix("torch.")
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, vocabulary, (arguments.batch, arguments.length), generator=generator).to(DEVICE)
    prompt = torch.randint(0, vocabulary, (1, arguments.prompt), generator=generator).to(DEVICE)
    if arguments.compile:
        for adapted, _ in models.values():
            inner = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
            for block in inner.get_decoder().layers:  # all are the same code, which is compiled once
                block.compile()
    training = {name: _Training(model, step, batch) for name, (model, step) in models.items()}
    kinds = {"training": _measured(training, batch.numel(), arguments.rounds)}
    if not arguments.compile:  # from a cache that grows, each token would be compiled anew
        for name in (HIMALAYA, IN_WEIGHTS):
            models[name][0].end_task()
        models[IN_WEIGHTS] = models[IN_WEIGHTS][0].merge_and_unload(), models[IN_WEIGHTS][1]
        decode = {name: _Decode(model, prompt, arguments.tokens) for name, (model, _) in models.items()}
        kinds["decode"] = _measured(decode, arguments.tokens, arguments.rounds)
        prefill = {name: _Prefill(model, prompt) for name, (model, _) in models.items()}
        kinds["prefill"] = _measured(prefill, arguments.prompt, arguments.rounds)
    results = {
        "machine": {
            "cpu": processor_name(),
            "system": platform.system(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        },
        "torch": torch.__version__,
        "backbone": arguments.backbone,
        "dtype": dtype,
        "compiled": arguments.compile,
        "rounds": arguments.rounds,
        "prompt_tokens": arguments.prompt,
        "decoded_tokens": arguments.tokens,
        "training_batch": [arguments.batch, arguments.length],
        "kinds": kinds,
    }
    print(json.dumps(results, indent=2))
    if arguments.output is not None:
        write_json(arguments.output, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=4, help="of training")
    parser.add_argument("--length", type=int, default=40, help="tokens of an example in training")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens decoded in one round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="torch.compile, training only")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def _measured(works: dict[str, Callable[[], float]], units: int, rounds: int) -> dict[str, dict[str, object]]:
    """Median milliseconds per token of each work, and the quartiles of its ratios to the bare model's."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for round_number in range(WARM_UP + rounds):
        for turn in range(len(names)):  # each round begins with another one
            name = names[(round_number + turn) % len(names)]
            taken = works[name]()
            if round_number >= WARM_UP:
                seconds[name].append(taken)
    return {
        name: {
            "milliseconds_per_token": 1000 * statistics.median(times) / units,
            "to_bare": _quartiles([mine / bare for mine, bare in zip(times, seconds[BARE], strict=True)]),
            "to_lora": _quartiles([mine / lora for mine, lora in zip(times, seconds[LORA], strict=True)]),
        }
        for name, times in seconds.items()
    }


def _now() -> float:
    """The time when all that was asked of the device is done, in seconds."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _quartiles(ratios: list[float]) -> list[float]:
    return statistics.quantiles(ratios, n=4, method="inclusive")


Trained = tuple[PreTrainedModel | PeftModel, Callable[[], None]]


def _backbone(arguments: argparse.Namespace) -> PreTrainedModel:
    return load_backbone(arguments.backbone, dtype=arguments.dtype).model.to(DEVICE)


def _adapted(arguments: argparse.Namespace, config: PeftConfig) -> Trained:
    model = get_peft_model(_backbone(arguments), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    if isinstance(config, HimalayaConfig):
        model.start_task("first")
        model.end_task()
        model.start_task("second")
        model.protect(optimizer)
    return model, optimizer.step


def _bare(arguments: argparse.Namespace) -> Trained:
    model = _backbone(arguments).requires_grad_(False)
    model.enable_input_require_grads()  # the gradient runs to the bottom, as with an adapter there
    return model, lambda: None


class _Training:
    """One step."""

    def __init__(self, model: PreTrainedModel | PeftModel, step: Callable[[], None], tokens: torch.Tensor) -> None:
        self.model, self.step, self.tokens = model, step, tokens

    def __call__(self) -> float:
        self.model.train()
        self.model.zero_grad()
        started = _now()
        self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss.backward()
        self.step()
        return _now() - started


class _Prefill:
    """One pass over the prompt, with the logits of its last token."""

    def __init__(self, model: PreTrainedModel | PeftModel, prompt: torch.Tensor) -> None:
        self.model, self.prompt = model, prompt

    @torch.inference_mode()
    def __call__(self) -> float:
        self.model.eval()
        started = _now()
        self.read(self.prompt)
        return _now() - started

    def read(self, tokens: torch.Tensor, cache: Cache | None = None) -> CausalLMOutputWithPast:
        """One pass as `generate` makes it: by the model inside PEFT's wrapper."""
        inner = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return inner(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)


class _Decode(_Prefill):
    """Greedy tokens, one pass each, after the prompt was read."""

    def __init__(self, model: PreTrainedModel | PeftModel, prompt: torch.Tensor, tokens: int) -> None:
        super().__init__(model, prompt)
        self.tokens = tokens

    @torch.inference_mode()
    def __call__(self) -> float:
        self.model.eval()
        last = self.read(self.prompt)
        started = _now()
        for _ in range(self.tokens):
            last = self.read(last.logits[:, -1:].argmax(-1), last.past_key_values)
        return _now() - started


if __name__ == "__main__":
    main()
