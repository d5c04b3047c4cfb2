"""O-LoRA against its definition: the sum of all tasks' products, the penalty, and what never moves."""

from typing import Any

import pytest
import torch
from families import llama, random_tokens
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from himalaya_adapter.methods.olora import OLoraConfig, OLoraLayer

RANK = 2
TARGETS = ["q_proj", "v_proj"]


def adapted(**changes: Any) -> PeftModel:
    torch.manual_seed(0)
    settings = {"r": RANK, "lora_alpha": 6, "target_modules": TARGETS} | changes
    return get_peft_model(llama().eval(), OLoraConfig(task_type="CAUSAL_LM", **settings)).eval()


def learn(model: PeftModel, seed: int, steps: int = 5) -> None:
    tokens = random_tokens(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    for _ in range(steps):
        loss = model.train()(input_ids=tokens, labels=tokens).loss + model.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def grown(tasks: int = 3, **changes: Any) -> PeftModel:
    """A model that has learnt so many tasks."""
    model = adapted(**changes)
    for task in range(tasks):
        model.start_task(f"task {task}")
        learn(model, seed=task)
    return model


def layers(model: PeftModel) -> list[OLoraLayer]:
    return [module for module in model.modules() if isinstance(module, OLoraLayer)]


def matrices(layer: OLoraLayer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A and B of each task, in order."""
    past = zip(layer.o_lora_past_A["default"].split(RANK), layer.o_lora_past_B["default"].split(RANK, 1), strict=True)
    return [*past, (layer.o_lora_A["default"], layer.o_lora_B["default"])]


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens(9)).logits


def test_a_layer_computes_the_sum_over_the_tasks() -> None:
    layer = layers(grown().double())[0]
    inputs = torch.randn(5, layer.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert len(matrices(layer)) == 3
    change = sum(b @ a for a, b in matrices(layer)) * 6 / RANK
    wanted = inputs @ (layer.base_layer.weight + change).T
    torch.testing.assert_close(layer(inputs), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.get_delta_weight("default"), change, rtol=1e-12, atol=1e-12)


def test_the_penalty_and_its_gradient_are_those_of_the_definition() -> None:
    model = grown(lambda_1=0.3, lambda_2=0.7).double()
    model.zero_grad()
    penalty = model.penalty()
    penalty.backward()
    wanted = torch.zeros((), dtype=torch.float64)
    copies = []
    for layer in layers(model):
        *past, (present_a, present_b) = matrices(layer)
        present_a, present_b = (one.detach().clone().requires_grad_() for one in (present_a, present_b))
        for past_a, _ in past:
            for row in past_a:
                for other in present_a:
                    wanted = wanted + 0.3 * abs(row @ other)
        wanted = wanted + 0.7 * (present_a.square().sum().sqrt() + present_b.square().sum().sqrt())
        copies.append((layer, present_a, present_b))
    torch.testing.assert_close(penalty, wanted, rtol=1e-12, atol=1e-12)
    wanted.backward()
    for layer, present_a, present_b in copies:
        torch.testing.assert_close(layer.o_lora_A["default"].grad, present_a.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.o_lora_B["default"].grad, present_b.grad, rtol=1e-10, atol=1e-12)


def test_the_first_task_has_no_penalty() -> None:
    model = adapted()
    model.start_task("first")
    assert model.penalty() == 0
    assert all(len(layer.o_lora_past_A["default"]) == 0 for layer in layers(model))


def overlap(model: PeftModel) -> float:
    """Largest cosine between a row of the present A and a row of an earlier one."""
    cosines = []
    for layer in layers(model):
        past, present = layer.o_lora_past_A["default"], layer.o_lora_A["default"].detach()
        cosines.append((past @ present.T).abs() / past.norm(dim=1).outer(present.norm(dim=1)))
    return max(cosine.max().item() for cosine in cosines)


def test_a_large_lambda_makes_the_subspaces_orthogonal() -> None:
    overlaps = {}
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        model = grown(tasks=1, lambda_1=weight)
        model.start_task("second")
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 120)  # |x| has no smaller gradient near 0
        tokens, losses = random_tokens(1), []
        for _ in range(120):
            loss = model.train()(input_ids=tokens, labels=tokens).loss
            losses.append(loss.item())
            (loss + model.penalty()).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] / 2, "and it learns"
        overlaps[weight] = overlap(model)
    assert overlaps[50.0] < 0.02
    assert overlaps[0.0] > 0.2


def test_earlier_tasks_never_move() -> None:
    model = grown(tasks=2)
    frozen = [[one.detach().clone() for pair in matrices(layer) for one in pair] for layer in layers(model)]
    for task in range(2, 4):
        before = logits_of(model)
        model.start_task(f"task {task}")
        torch.testing.assert_close(logits_of(model), before, rtol=1e-4, atol=1e-4)  # one sum in another order
        learn(model, seed=task)
        assert not torch.allclose(logits_of(model), before, atol=1e-2)
    for layer, kept in zip(layers(model), frozen, strict=True):
        now = [one for pair in matrices(layer) for one in pair]
        assert len(now) == 8
        for one, before in zip(now, kept, strict=False):
            assert torch.equal(one, before)


def test_a_new_task_starts_at_random_and_the_seed_decides() -> None:
    first, again, other = grown(tasks=1), grown(tasks=1), grown(tasks=1, seed=1)
    for model in (first, again, other):
        torch.rand(1)  # whatever else has drawn random numbers
        model.start_task("second")
    starts = [[layer.o_lora_A["default"] for layer in layers(model)] for model in (first, again, other)]
    for one, same, different in zip(*starts, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)
    bound = 1 / layers(first)[0].in_features ** 0.5
    assert 0.9 * bound < starts[0][0].abs().max() <= bound
    assert not torch.equal(*starts[0][:2])
    assert not any(layer.o_lora_B["default"].any() for layer in layers(first))


@pytest.mark.parametrize("tasks_of_the_other", [0, 1, 4])
def test_a_grown_adapter_goes_into_a_model_of_any_age(tasks_of_the_other: int, tmp_path) -> None:
    model = grown()
    state = get_peft_model_state_dict(model)
    other = grown(tasks=tasks_of_the_other)
    result = set_peft_model_state_dict(other, {name: tensor.clone() for name, tensor in state.items()})
    assert not result.unexpected_keys
    assert torch.equal(logits_of(other), logits_of(model))
    for name, tensor in get_peft_model_state_dict(other).items():
        assert torch.equal(tensor, state[name]), name
    for one in (model, other):
        one.start_task("next")
        learn(one, seed=7)
    assert torch.equal(logits_of(other), logits_of(model))


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_grown_adapter_is_loaded_under_another_name(low_memory: bool, tmp_path) -> None:
    model = grown()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(llama().eval(), tmp_path, "another", low_cpu_mem_usage=low_memory).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_bytes_grow_with_the_tasks() -> None:
    model = adapted()
    sizes = []
    for task in range(3):
        model.start_task(f"task {task}")
        learn(model, seed=task, steps=1)
        sizes.append(model.stored_bytes())
    per_task = 4 * RANK * 2 * ((64 + 64) + (64 + 32))  # queries and values of two layers
    assert [sum(one.values()) for one in sizes] == [per_task, 2 * per_task, 3 * per_task]
    assert sizes[2]["past_A"] == 2 * sizes[2]["A"]
    tensors = get_peft_model_state_dict(model).values()
    assert sum(tensor.nbytes for tensor in tensors) == 3 * per_task


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r=0 must be at least 1"),
        ({"lambda_1": -1.0}, "lambda_1=-1.0 must be at least 0"),
        ({"layers_pattern": "layers"}, "needs `layers_to_transform`"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**changes)
