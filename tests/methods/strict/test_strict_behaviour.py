"""What the letter alone promises, in the cases of the behaviour matrix that are its own."""

import pytest
import torch
from families import STRICT_CASES, Case, random_tokens

from himalaya_adapter.methods.himalaya_strict.update import Routes

pytestmark = pytest.mark.parametrize("case", STRICT_CASES.values(), ids=STRICT_CASES.keys())


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens()).logits


def test_the_trainable_parameters_are_the_head_the_elastic_atoms_and_the_thresholds(case: Case) -> None:
    model = case.adapted()
    shared = model.base_model.himalaya_strict_shared["default"]
    latent = len(shared.router.projection)
    head = (2 * 40 + 1) * (latent + 1) * 32
    assert (
        model.get_nb_trainable_parameters()[0] == head + 16 * shared.dictionary.width + shared.tree.thresholds.numel()
    )
    assert head + latent * shared.dictionary.width <= 45_000


def test_merging_is_refused_with_the_reason(case: Case) -> None:
    model = case.adapted()
    before = logits_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="differs from token to token"):
            merge()
    assert torch.equal(logits_of(model), before)


def test_the_task_decides_the_outputs_and_its_name_decides_the_task(case: Case) -> None:
    model = case.adapted()
    model.set_task("summarise")
    first = logits_of(model)
    model.set_task("translate")
    assert not torch.equal(logits_of(model), first)
    model.set_task("summarise")
    assert torch.equal(logits_of(model), first)


def test_a_part_of_the_model_called_by_itself_sees_the_adapter_as_it_is_now(case: Case) -> None:
    """Some trainers call the decoder without its head; what the layers share in a pass must not be an old pass's."""
    model, tokens = case.adapted(), random_tokens()
    decoder, head = model.base_model.model.model, model.base_model.model.lm_head
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.protect(optimizer)

    def assert_is_up_to_date() -> None:
        with torch.no_grad():
            alone = head(decoder(input_ids=tokens).last_hidden_state)
        assert torch.equal(alone, logits_of(model))

    for name in ("summarise", "translate"):
        model.set_task(name)
        assert_is_up_to_date()
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    model.eval()
    assert_is_up_to_date()
    logits_of(model.train())
    model.eval()
    assert_is_up_to_date()


def test_a_token_uses_at_most_three_atoms(case: Case, monkeypatch) -> None:
    model = case.adapted()
    shared = model.base_model.himalaya_strict_shared["default"]
    route, used = shared.update.route, []

    def count(projected: torch.Tensor, routes: Routes) -> tuple[torch.Tensor, torch.Tensor]:
        coefficients, gain = route(projected, routes)
        used.append((coefficients != 0).sum(-1))
        return coefficients, gain

    monkeypatch.setattr(shared.update, "route", count)
    for mode in (True, False):
        model.train(mode)
        model.start_task("count")
        used.clear()
        logits_of(model)
        counts = torch.cat([count.flatten() for count in used])
        assert counts.max() <= 3
        assert counts.min() >= 1
    model.train()
    logits_of(model)
    statistics = model.task_statistics()
    assert 0 < statistics["expected_active_atoms"] <= 3 * (1 + 1e-6)
    assert 1 <= statistics["active_atoms"] <= 3
    assert sum(statistics["atom_usage"]) == pytest.approx(statistics["active_atoms"], rel=1e-5)
