"""LoReFT against its formula: R has orthonormal rows whatever an optimiser does, and the edit is the paper's."""

import pytest
import torch
from families import WIDTH, llama, random_tokens
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.functional import linear

from himalaya_adapter.methods.loreft import LoReftConfig, LoReftLayer, orthonormal_rows, subspace_edit

RANK = 4


class Doubled(nn.Module):
    """A layer that returns twice its input, and as a tuple if asked: both forms are found in decoder models."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor | tuple[torch.Tensor, str]:
        return (2 * hidden_states, "rest") if self.as_tuple else 2 * hidden_states


def layer(as_tuple: bool = False, **changes) -> LoReftLayer:
    torch.manual_seed(0)
    made = LoReftLayer(Doubled(as_tuple))
    made.set_adapter("default")
    made.add_adapter("default", LoReftConfig(r=RANK, init_weights=False, **changes), 12)
    return made.double()


def adapted(**changes) -> PeftModel:
    torch.manual_seed(0)
    base = llama().eval()
    return get_peft_model(base, LoReftConfig(task_type="CAUSAL_LM", r=RANK, **changes)).eval()


def gram_schmidt(matrix: torch.Tensor) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    for row in matrix:
        for done in rows:
            row = row - (row @ done) * done
        rows.append(row / row.norm())
    return torch.stack(rows)


def test_the_rows_are_those_of_gram_schmidt() -> None:
    matrix = torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthonormal_rows(matrix), gram_schmidt(matrix), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(orthonormal_rows, matrix.requires_grad_())


def test_the_edit_is_differentiable_as_the_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"hidden_states": (3, 6), "matrix": (2, 6), "weight": (2, 6), "bias": (2,)}
    inputs = [torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes.values()]
    assert torch.autograd.gradcheck(lambda h, m, w, b: subspace_edit(h, orthonormal_rows(m), w, b), inputs)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_layer_computes_the_formula(as_tuple: bool) -> None:
    r"""Token by token, in dense matrices: h + Rᵀ(W h + b − R h), h being the base layer's output."""
    made = layer(as_tuple)
    inputs = torch.randn(2, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    output = made(inputs)
    if as_tuple:
        output, rest = output
        assert rest == "rest"
    rotation = gram_schmidt(made.loreft_R["default"])
    weight, bias = made.loreft_W["default"], made.loreft_b["default"]
    for row, given in zip(output.reshape(-1, 12), inputs.reshape(-1, 12), strict=True):
        hidden = 2 * given
        wanted = hidden + rotation.T @ (weight @ hidden + bias - rotation @ hidden)
        torch.testing.assert_close(row, wanted, rtol=1e-12, atol=1e-12)


def test_the_edit_stays_in_the_subspace_and_replaces_what_is_there() -> None:
    """In the subspace of R an edited state is W h + b, whatever h was; orthogonally to it nothing changes."""
    made = layer()
    inputs = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rotation, output = made.rotation("default"), made(inputs)
    wanted = linear(2 * inputs, made.loreft_W["default"], made.loreft_b["default"])
    torch.testing.assert_close(output @ rotation.T, wanted, rtol=1e-12, atol=1e-12)
    outside = torch.eye(12, dtype=torch.float64) - rotation.T @ rotation
    torch.testing.assert_close(output @ outside, 2 * inputs @ outside, rtol=1e-12, atol=1e-12)


def test_the_rows_stay_orthonormal_over_50_steps() -> None:
    model = adapted().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    tokens = random_tokens()
    before = [one.rotation("default").detach() for one in model.modules() if isinstance(one, LoReftLayer)]
    for _ in range(50):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layers = [one for one in model.modules() if isinstance(one, LoReftLayer)]
    assert len(layers) == 2
    for one, start in zip(layers, before, strict=True):
        rotation, raw = one.rotation("default"), one.loreft_R["default"]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(RANK), rtol=0, atol=1e-6)
        assert (raw @ raw.T - torch.eye(RANK)).abs().max() > 0.1, "of itself the parameter would not stay orthonormal"
        assert (rotation - start).abs().max() > 0.1, "R learns"
    assert loss < 1


def test_parameters_are_counted() -> None:
    model = adapted()
    assert model.get_nb_trainable_parameters()[0] == 2 * RANK * (2 * WIDTH + 1)


@pytest.mark.parametrize("layers", [1, [1], None])
def test_only_the_chosen_layers_are_adapted(layers: int | list[int] | None) -> None:
    model = adapted(layers_to_transform=layers)
    found = [name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, LoReftLayer)]
    assert found == (["0", "1"] if layers is None else ["1"])


def test_only_the_first_positions_are_edited() -> None:
    """With the last layer alone adapted, exactly the first two tokens' logits change, padding or not, cache or not."""
    model, tokens = adapted(layers_to_transform=[1], first_positions=2, init_weights=False), random_tokens()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        logits = model(input_ids=tokens, position_ids=positions).logits
        with model.disable_adapter():
            base = model(input_ids=tokens, position_ids=positions).logits
    changed = (logits - base).abs().amax(-1) > 0
    assert changed.tolist() == (positions < 2).tolist()
    assert torch.equal(logits, model(input_ids=tokens).logits), "a model counts positions itself"
    padded = {
        "input_ids": torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], 1),
        "attention_mask": torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(tokens)], 1),
        "position_ids": torch.cat([torch.zeros(2, 3, dtype=torch.long), positions], 1),
    }
    torch.testing.assert_close(model(**padded).logits[:, 3:], logits, rtol=1e-4, atol=1e-4)
    first = model(input_ids=tokens[:, :5], use_cache=True)
    rest = model(input_ids=tokens[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), logits, rtol=1e-4, atol=1e-4)


def test_merging_is_refused_with_the_way_out() -> None:
    model = adapted(init_weights=False)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match=r"edits hidden states after a layer.*Keep the adapter attached"):
            merge()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r=0 must be at least 1"),
        ({"r": 65}, "r=65 exceeds 64"),
        ({"first_positions": 0}, "first_positions=0 must be at least 1"),
        ({"layers_pattern": "layers"}, "needs `layers_to_transform`"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(llama(), LoReftConfig(task_type="CAUSAL_LM", **changes))


def test_layers_without_positions_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match="first_positions=2 needs a model that passes position_ids"):
        layer(first_positions=2)(torch.zeros(1, 3, 12, dtype=torch.float64))
