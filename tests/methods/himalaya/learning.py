"""What most tests of HIMALAYA begin with: a tiny model, and tasks that its adapter learns."""

from collections.abc import Callable
from typing import Any

import torch
from families import Case, llama, random_tokens
from peft import PeftModel, get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.himalaya import HimalayaAdapter
from himalaya_adapter.methods.himalaya.update import unscaled

# Few numbers, so that a task costs little.
SMALL = {"atoms_per_task": 3, "elastic_atoms": 48}
PLACEMENTS = ("residual_stream", "weights")


def attached(family: Callable[..., Any] = llama, **changes: Any) -> PeftModel:
    """A tiny frozen model with a fresh adapter; the same at every call."""
    config = HimalayaConfig(task_type="CAUSAL_LM", **{**SMALL, **changes})
    return get_peft_model(Case(family).base(), config).eval()


def alone(width: int = 64, **changes: Any) -> HimalayaAdapter:
    """An adapter of two layers without a model."""
    return HimalayaAdapter(HimalayaConfig(layers=2, **{**SMALL, **changes}), width)


def adapter_of(model: PeftModel, name: str = "default") -> HimalayaAdapter:
    return model.base_model.himalaya_shared[name]


def learn(
    model: PeftModel, name: str, seed: int | None = None, steps: int = 3, lr: float = 3e-3, end: bool = True
) -> list[dict[str, Any]]:
    """Learn a task of random tokens; the events of it."""
    seed = sum(name.encode()) if seed is None else seed
    events, tokens = model.start_task(name), random_tokens(seed, 2, 8)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr)
    handles = model.protect(optimizer)
    model.train()
    model.observe_prompts(prompts(seed))
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    model.eval()
    return events + (model.end_task() if end else [])


def prompts(seed: int, batch: int = 6, length: int = 7) -> torch.Tensor:
    """Prompts of a task: its own first tokens, then random ones."""
    tokens = random_tokens(seed, batch, length)
    tokens[:, :4] = tokens[0, :4].clone()
    return tokens


def put(adapter: HimalayaAdapter, name: str, atoms: torch.Tensor) -> list[dict[str, Any]]:
    """Let a task have learnt these atoms ``(k, d)``."""
    events = adapter.start_task(name)
    adapter.atoms.data = unscaled(atoms)
    return events + adapter.end_task()


def random_atoms(seed: int, count: int = 3, width: int = 64, norm: float = 0.9) -> torch.Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return norm * torch.nn.functional.normalize(rows, dim=1)


def logits_of(model: torch.nn.Module, tokens: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens() if tokens is None else tokens, **inputs).logits


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.nan_to_num(), after[name].nan_to_num()), name
