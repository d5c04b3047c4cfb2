"""Training speed of HIMALAYA against PEFT's LoRA r=8 and the bare frozen model, as ratios measured in one process.

Run: python benchmarks/throughput.py [--backbone smollm2-135m] [--batch 8] [--length 40] [--rounds 12]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.backbones import load_backbone

WARM_UP = 2


def main() -> None:
    arguments = _arguments()
    models = {
        "HIMALAYA": _himalaya(arguments.backbone),
        "LoRA r=8 (q, o)": _lora(arguments.backbone, ["q_proj", "o_proj"]),
        "LoRA r=8 (q, k, v, o)": _lora(arguments.backbone, ["q_proj", "k_proj", "v_proj", "o_proj"]),
        "frozen, forward + backward": _bare(arguments.backbone),
    }
    vocabulary = next(iter(models.values()))[0].config.vocab_size
    tokens = torch.randint(
        0, vocabulary, (arguments.batch, arguments.length), generator=torch.Generator().manual_seed(0)
    )
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(WARM_UP + arguments.rounds):
        for name, (model, step) in models.items():  # interleaved: a busy moment of the machine hits all alike
            taken = _time(model, step, tokens)
            if round_number >= WARM_UP:
                seconds[name].append(taken)
    ours = seconds["HIMALAYA"]
    print(
        f"{arguments.backbone}, batch {arguments.batch} x {arguments.length} tokens, {torch.get_num_threads()} threads"
    )
    for name, times in seconds.items():
        rate = tokens.numel() / statistics.median(times)
        ratios = sorted(other / mine for other, mine in zip(times, ours, strict=True))
        low, middle, high = ratios[len(ratios) // 4], statistics.median(ratios), ratios[3 * len(ratios) // 4]
        print(f"{name:28s} {rate:8.0f} tokens/s   HIMALAYA is {middle:.2f} x as fast (quartiles {low:.2f}-{high:.2f})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=12)
    return parser.parse_args()


def _himalaya(backbone: str) -> tuple[torch.nn.Module, Callable[[], None]]:
    model = get_peft_model(load_backbone(backbone).model, HimalayaConfig(task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.start_task("first")
    model.end_task()
    model.start_task("second")
    model.protect(optimizer)  # the second task pays for the protection of the first
    return model, optimizer.step


def _lora(backbone: str, targets: list[str]) -> tuple[torch.nn.Module, Callable[[], None]]:
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets)
    model = get_peft_model(load_backbone(backbone).model, config)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4).step


def _bare(backbone: str) -> tuple[torch.nn.Module, Callable[[], None]]:
    model = load_backbone(backbone).model.requires_grad_(False)
    model.enable_input_require_grads()  # the gradient runs to the bottom, as with an adapter there
    return model, lambda: None


def _time(model: torch.nn.Module, step: Callable[[], None], tokens: torch.Tensor) -> float:
    model.train()
    model.zero_grad()
    started = time.perf_counter()
    model(tokens, labels=tokens).loss.backward()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
