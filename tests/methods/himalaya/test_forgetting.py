"""A task is taken out again: nothing of it answers any more, and all others answer bit for bit as before."""

from pathlib import Path

import pytest
import torch
from families import Case, llama
from learning import (
    PLACEMENTS,
    adapter_of,
    assert_same,
    attached,
    learn,
    logits_of,
    prompts,
    put,
    random_atoms,
    snapshot,
)
from peft import PeftModel

from himalaya_adapter import save_release
from himalaya_adapter.errors import HimalayaError

each_placement = pytest.mark.parametrize("placement", PLACEMENTS)


def answers(model: PeftModel) -> dict[str, torch.Tensor]:
    found = {}
    for name in model.tasks:
        model.set_task(name)
        found[name] = logits_of(model)
    return found


def three(**changes: object) -> PeftModel:
    model = attached(**changes)
    for seed, name in enumerate("abc"):
        learn(model, name, seed=seed, lr=0.01)
    return model


@each_placement
def test_the_others_stay_to_the_bit_and_the_forgotten_one_is_unknown(placement: str, tmp_path: Path) -> None:
    model = three(placement=placement)
    before, free = answers(model), model.task_statistics()["free_atoms"]
    hashes = {name: model.task_hash(name) for name in "ac"}
    model.set_task("b")
    model.forget_task("b")
    frozen = logits_of(attached().unload())
    assert torch.equal(logits_of(model), frozen), "it answered as the task that is gone"
    assert model.task_statistics()["free_atoms"] == free + 3
    model.save_pretrained(tmp_path / "adapter")
    save_release(model, tmp_path / "release")
    loaded = [PeftModel.from_pretrained(Case(llama).base(), tmp_path / kind).eval() for kind in ("adapter", "release")]
    for one in (model, *loaded):
        assert one.tasks == ["a", "c"]
        assert {name: one.task_hash(name) for name in "ac"} == hashes
        for name, logits in answers(one).items():
            assert torch.equal(logits, before[name])
        with pytest.raises(HimalayaError, match=r"^unknown task 'b'"):
            one.set_task("b")
        assert not one.remembers_task("b")
        assert [name for name, _ in one.infer_task(prompts(2))] == ["c"] * 6
        assert {name for name, _ in one.infer_task(prompts(1))} <= {"a", "c", None}


def test_the_room_is_that_of_an_adapter_that_never_learnt_it() -> None:
    model = attached(elastic_atoms=6, max_tasks=2)
    learn(model, "a")
    learn(model, "b")
    with pytest.raises(HimalayaError, match="no room"):
        model.start_task("c")
    model.forget_task("a")
    learn(model, "c")
    assert model.tasks == ["c", "b"]


def test_nothing_of_the_only_task_is_left_in_the_file() -> None:
    """But for the channels' sizes, which are the frozen model's: whatever is learnt first, they are the same."""
    model, other = attached(), attached()
    learn(other, "another")
    fresh = snapshot(attached()) | {name: one for name, one in snapshot(other).items() if name.endswith("channels")}
    learn(model, "a")
    model.forget_task("a")
    assert_same(model, fresh)
    model.start_task("b")  # a task that is dropped before it ends leaves nothing either
    model.observe_prompts(prompts(1))
    model.forget_task("b")
    assert_same(model, fresh)


def test_the_file_is_that_of_an_adapter_that_learnt_the_others_only() -> None:
    """With evictions but for past gradients: which task they are from is not kept, so all of them go."""
    for evict in (False, True):
        model = attached(evict=evict)
        learn(model, "a")
        learn(model, "b")
        model.forget_task("b")
        other = attached(evict=evict)
        learn(other, "a")
        fisher = adapter_of(other).fisher
        for buffer in (fisher.residuals, fisher.seen, fisher.energy) if evict else ():
            assert buffer is fisher.energy or buffer.any()
            buffer.zero_()
        model.set_task("a")
        assert_same(model, snapshot(other))


def test_a_shared_slot_stays_until_its_last_task_is_forgotten() -> None:
    model = attached(evict=True)
    adapter, atoms = adapter_of(model), random_atoms(0)
    put(adapter, "a", atoms)
    (event, *others) = put(adapter, "b", torch.cat([atoms[:1], random_atoms(1)[1:]]))
    assert event.kind == "sharing"
    assert others == []
    b = adapter.task_atoms(1)
    model.forget_task("a")
    assert torch.equal(adapter.task_atoms(1), b)
    assert adapter.dictionary.elastic.any(1).sum() == 3
    model.forget_task("b")
    assert not adapter.dictionary.elastic.any()
    assert torch.equal(adapter.fisher.importance, adapter_of(attached(evict=True)).fisher.importance)


def test_rows_of_a_batch_that_named_it_are_frozen() -> None:
    model = three()
    tokens = prompts(1, 2)
    model.set_task([None, "b"])
    wanted = logits_of(model, tokens)
    model.set_task(["a", "b"])
    assert not torch.equal(logits_of(model, tokens), wanted)
    model.forget_task("a")
    assert torch.equal(logits_of(model, tokens), wanted)


def test_what_cannot_be_forgotten_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model = three()
    save_release(model, tmp_path)
    release = PeftModel.from_pretrained(Case(llama).base(), tmp_path)
    model.start_task("d")
    for one, name, message in (
        (model, "x", "unknown task 'x'"),
        (model, "a", "task 'd' is being learnt: end it before you forget task 'a'"),
        (release, "a", "a release file is for inference only"),
    ):
        before = snapshot(one)
        with pytest.raises(HimalayaError, match=message):
            one.forget_task(name)
        assert_same(one, before)


def test_a_merged_adapter_forgets_nothing() -> None:
    model = three(placement="weights")
    model.merge_adapter()
    with pytest.raises(HimalayaError, match="unmerge it before forget_task"):
        model.forget_task("a")


def test_a_late_step_of_the_optimiser_moves_nothing() -> None:
    model = attached()
    learn(model, "a", end=False)
    adapter = adapter_of(model)
    optimizer = torch.optim.AdamW([adapter.atoms], lr=0.01, weight_decay=0.1)
    model.train()
    tokens = prompts(0)
    model(input_ids=tokens, labels=tokens).loss.backward()
    model.end_task()
    before = snapshot(model)
    optimizer.step()
    assert_same(model, before)
