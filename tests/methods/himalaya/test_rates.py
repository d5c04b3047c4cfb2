"""One learning rate for all widths: a step moves an atom by as much, and the loss falls."""

import pytest
import torch
from families import llama
from learning import PLACEMENTS, adapter_of
from peft import get_peft_model

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.methods.himalaya.update import REFERENCE_WIDTH, scaled

RATE = 3e-3
STEPS = 12
# Widths of real models, by as few layers and words as will do.
SHAPES = {
    64: {"layers": 4},
    576: {"layers": 2, "intermediate_size": 64, "num_attention_heads": 9, "num_key_value_heads": 3},
    2048: {"layers": 1, "intermediate_size": 64, "num_attention_heads": 16, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("width", SHAPES)
def test_a_step_moves_an_atom_by_the_same_at_every_width_and_the_loss_falls(width: int, placement: str) -> None:
    torch.manual_seed(0)
    base = llama(hidden_size=width, std=0.6 / width**0.5, **SHAPES[width])
    # In the weights so few that each number is an entry of a factor.
    count, rank = (12, 1) if placement == "residual_stream" else (3, 4)
    config = HimalayaConfig(task_type="CAUSAL_LM", placement=placement, atoms_per_task=count, rank=rank)
    model = get_peft_model(base, config).train()
    model.start_task("a")
    atoms = adapter_of(model).atoms
    optimizer = torch.optim.Adam([atoms], lr=RATE)
    tokens = torch.arange(1, 17).view(2, 8)
    moves, losses = [], []
    for _ in range(STEPS):
        before = scaled(atoms.detach())
        loss = model(input_ids=tokens, labels=tokens).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moves.append((scaled(atoms.detach()) - before).norm(dim=1))
    # Adam's first step is the rate in every entry: from nothing, that is the rate times sqrt(REFERENCE_WIDTH).
    acting = adapter_of(model).update.codes.any(0) if placement == "residual_stream" else slice(None)
    wanted = RATE * REFERENCE_WIDTH**0.5
    torch.testing.assert_close(moves[0][acting], torch.full_like(moves[0][acting], wanted), rtol=0.01, atol=0)
    assert losses[-1] < losses[0] - 0.1, losses
