"""A task from its start to its answers: what is kept, what is refused, and who answers which prompt."""

import copy
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from families import PADDING, Case, llama, random_tokens
from learning import PLACEMENTS, SMALL, adapter_of, assert_same, attached, learn, logits_of, prompts, snapshot
from peft import PeftModel, get_peft_model
from transformers import DynamicCache, LlamaForSequenceClassification

from himalaya_adapter import HimalayaConfig, save_release
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HashedLinear
from himalaya_adapter.methods.himalaya.adapter import UNNAMED
from himalaya_adapter.methods.task_inference.prompted import _unpacked

each_placement = pytest.mark.parametrize("placement", PLACEMENTS)
GENERATION = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def train(model: PeftModel, seed: int = 0, steps: int = 1) -> None:
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    model.train()
    for _ in range(steps):
        model(input_ids=random_tokens(seed), labels=random_tokens(seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def two_tasks() -> PeftModel:
    """A model that has learnt ``a`` and ``b``."""
    model = attached()
    learn(model, "a", seed=1, lr=0.01)
    learn(model, "b", seed=2, lr=0.01)
    return model


# Start and end -------------------------------------------------------------------------------------------------


@each_placement
def test_a_task_starts_as_the_frozen_model_whatever_was_learnt_before(placement: str) -> None:
    model = attached(placement=placement)
    base = logits_of(model)
    learn(model, "a")
    a = logits_of(model)
    assert not torch.equal(a, base)
    assert model.start_task("b") == []
    assert torch.equal(logits_of(model), base)
    assert model.start_task("b") == []  # it is open
    model.end_task()
    assert model.tasks == ["a", "b"]
    model.set_task("a")
    assert torch.equal(logits_of(model), a)
    assert model.end_task() == []  # nothing is open
    assert torch.equal(logits_of(model), a)


@each_placement
def test_a_known_task_goes_on_from_where_it_was(placement: str) -> None:
    model = attached(placement=placement)
    learn(model, "a", steps=8)
    learn(model, "b")
    a, b = (answers(model, name) for name in ("a", "b"))
    model.start_task("a")
    torch.testing.assert_close(logits_of(model), a, rtol=0, atol=1e-4)
    model.end_task()  # nothing was learnt
    torch.testing.assert_close(answers(model, "a"), a, rtol=0, atol=1e-4)
    learn(model, "a", seed=5, steps=8)
    assert (answers(model, "a") - a).abs().max() > 1e-2
    assert torch.equal(answers(model, "b"), b)
    assert model.tasks == ["a", "b"]


def answers(model: PeftModel, name: str) -> torch.Tensor:
    model.set_task(name)
    return logits_of(model)


def test_a_second_task_is_refused_while_one_is_being_learnt() -> None:
    model = attached()
    learn(model, "a")
    learn(model, "b", end=False)
    before = snapshot(model)
    for other in ("a", "c"):
        message = rf"^task 'b' is being learnt: before task '{other}' begins, model\.end_task\(\) keeps .* drops that$"
        with pytest.raises(HimalayaError, match=message):
            model.start_task(other)
        assert_same(model, before)


def test_an_unknown_task_is_refused_with_those_that_are_known(two_tasks: PeftModel) -> None:
    two_tasks.set_task("b")
    b = logits_of(two_tasks)
    for name in ("c", ["a", "c"]):
        with pytest.raises(HimalayaError, match=r"^unknown task 'c'; did you mean '.'\? \(known: a, b\)$"):
            two_tasks.set_task(name)
        assert torch.equal(logits_of(two_tasks), b)
    assert not two_tasks.remembers_task("c")
    assert two_tasks.remembers_task("a")


@pytest.mark.parametrize("name", [None, "", " a", 3])
def test_a_start_with_what_is_no_name_changes_nothing(name: object) -> None:
    model = attached()
    learn(model, "a", end=False)
    before = snapshot(model)
    with pytest.raises(HimalayaError, match=r"^a task's name is "):
        model.start_task(name)
    assert_same(model, before)


# Broken training -----------------------------------------------------------------------------------------------


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out() -> None:
    model = attached()
    model.train().start_task("a")
    adapter = adapter_of(model)
    optimizer = torch.optim.AdamW([adapter.atoms], lr=0.01)
    model.protect(optimizer)
    for bad in (torch.nan, torch.inf):
        model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()
        before = snapshot(model)
        adapter.atoms.grad[0, 0] = bad
        optimizer.step()
        assert_same(model, before)
        optimizer.zero_grad()
    train(model)
    assert adapter.atoms.any()
    model.end_task()
    assert logits_of(model).isfinite().all()


def test_a_task_whose_atoms_are_not_finite_is_not_stored_and_can_be_started_again() -> None:
    model = attached()
    learn(model, "a")
    a = logits_of(model)
    for known in (False, True):
        learn(model, "b", end=False)
        with torch.no_grad():
            adapter_of(model).atoms[0, 0] = torch.nan
        before = snapshot(model)
        with pytest.raises(HimalayaError, match="atoms are not finite: start it again with a lower learning rate"):
            model.end_task()
        assert_same(model, before)
        model.start_task("b")
        assert logits_of(model).isfinite().all()
        assert adapter_of(model).atoms.any() == known  # what it had learnt before
        learn(model, "b")
    assert torch.equal(answers(model, "a"), a)


@each_placement
def test_what_is_being_learnt_answers_alike_in_inference_mode(placement: str) -> None:
    model = attached(placement=placement)
    learn(model, "a", end=False)
    wanted = logits_of(model)
    for _ in range(2):
        with torch.inference_mode():
            assert torch.equal(model(input_ids=random_tokens()).logits, wanted)
    learn(model, "a")
    assert not torch.equal(logits_of(model), wanted)


# Without a task ------------------------------------------------------------------------------------------------


def test_training_outside_of_a_task_warns_once_and_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    model = attached()
    with caplog.at_level(logging.WARNING, logger="himalaya_adapter"):
        train(model, steps=4)
    (record,) = caplog.records
    assert "the adapter is trained outside of a task" in record.getMessage()
    assert "`with model.learning(name):`, or give a Trainer callbacks=[TaskCallback(name)]" in record.getMessage()
    learnt = logits_of(model)
    model.start_task("a")
    assert model.tasks == [UNNAMED]
    assert (answers(model, UNNAMED) - learnt).abs().max() < 1
    assert adapter_of(model).task_atoms(0).any()


@pytest.mark.parametrize("room", [{"elastic_atoms": 3}, {"max_tasks": 1}])
def test_what_was_learnt_without_a_name_needs_room_too(room: dict[str, int]) -> None:
    model = attached(**room)
    train(model)
    before = snapshot(model)
    with pytest.raises(HimalayaError, match=r"^no room for "):
        model.start_task("a")
    assert_same(model, before)
    model.end_task()
    assert model.tasks == [UNNAMED]


def test_what_was_learnt_without_a_name_survives_a_file(tmp_path: Path) -> None:
    model = attached()
    train(model, steps=4)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Case(llama).base(), tmp_path, is_trainable=True).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    loaded.start_task("a")
    assert loaded.tasks == [UNNAMED]


@each_placement
def test_an_adapter_that_has_learnt_tasks_is_not_trained_outside_of_one(placement: str) -> None:
    model = attached(placement=placement)
    learn(model, "a")
    learn(model, "b")
    model.train()
    for answering in ("b", "a", None):
        model.set_task(answering)
        before = snapshot(model)
        with pytest.raises(
            HimalayaError, match=r"^no task is being learnt: train inside of `with model\.learning\(name\)"
        ):
            model(input_ids=random_tokens(batch=1), labels=random_tokens(batch=1))
        assert_same(model, before)
    model.start_task("c")
    for other in ("a", ["c"], None):  # and not back
        model.set_task(other)
        with pytest.raises(HimalayaError, match=r"^task 'c' is being learnt, but the adapter answers as another one"):
            model(input_ids=random_tokens(batch=1), labels=random_tokens(batch=1))
    model.set_task("c")
    model(input_ids=random_tokens(), labels=random_tokens()).loss.backward()


# Files and inference -------------------------------------------------------------------------------------------


@each_placement
def test_a_half_learnt_task_goes_on_from_its_file_as_if_nothing_had_been(placement: str, tmp_path: Path) -> None:
    model = attached(placement=placement)
    learn(model, "a")
    learn(model, "b", end=False)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Case(llama).base(), tmp_path, is_trainable=True).eval()
    for one in (model, loaded):
        learn(one, "b", seed=4)
    assert torch.equal(logits_of(model), logits_of(loaded))
    assert_same(loaded, snapshot(model))


@each_placement
def test_a_file_answers_alike_whatever_the_defaults_of_torch_are(placement: str, tmp_path: Path) -> None:
    model = attached(placement=placement)
    learn(model, "a")
    model.save_pretrained(tmp_path)
    for change, to, back in (
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_default_dtype, torch.bfloat16, torch.float32),
        (torch.set_default_device, "meta", None),
    ):
        base = Case(llama).base()
        change(to)
        try:
            loaded = PeftModel.from_pretrained(base, tmp_path).eval()
            assert adapter_of(loaded).update.anchors.device.type == "cpu"
        finally:
            change(back)
        assert adapter_of(loaded).atoms.dtype == torch.float32
        assert torch.equal(logits_of(loaded), logits_of(model))


def test_an_adapter_for_inference_refuses_to_learn_before_anything_changes(
    two_tasks: PeftModel, tmp_path: Path
) -> None:
    two_tasks.set_task("b")
    two_tasks.save_pretrained(tmp_path / "adapter")
    save_release(two_tasks, tmp_path / "release")
    for kind, message in (("adapter", "is_trainable=True"), ("release", "load the adapter that it was made from")):
        loaded = PeftModel.from_pretrained(Case(llama).base(), tmp_path / kind).eval()
        before = snapshot(loaded)
        for name in ("c", "a"):
            with pytest.raises(HimalayaError, match=message):
                loaded.start_task(name)
        assert_same(loaded, before)
        assert torch.equal(logits_of(loaded), logits_of(two_tasks))


@each_placement
def test_an_evaluation_sees_a_step_that_leaves_no_trace(placement: str) -> None:
    """Some optimisers write into the memory of a parameter, which torch does not count as a change of it."""
    model = attached(placement=placement)
    learn(model, "a", end=False)
    before = logits_of(model)
    adapter_of(model).atoms.data.mul_(-1)
    assert (logits_of(model) - before).abs().max() > 1e-2


@each_placement
def test_what_was_made_in_inference_mode_serves_a_pass_with_gradients(placement: str) -> None:
    model = attached(placement=placement)
    learn(model, "a")
    with torch.inference_mode():
        wanted = model(input_ids=random_tokens()).logits
    embeddings = model.get_input_embeddings()(random_tokens()).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings).logits
    logits.sum().backward()
    assert embeddings.grad.any()
    assert torch.equal(logits.detach(), wanted)
    learn(model, "b")


def test_a_copy_of_a_model_lives_by_itself() -> None:
    model = attached()
    learn(model, "a")
    other = copy.deepcopy(model)
    a = logits_of(model)
    learn(other, "b")
    assert model.tasks == ["a"]
    assert torch.equal(logits_of(model), a)
    other.set_task(None)
    assert other.generate(input_ids=prompts(97), **GENERATION).shape == (6, 12)
    assert not adapter_of(model).infers_task


def test_unloading_leaves_nothing_behind() -> None:
    for way in ("unload", "merge_and_unload"):
        model = attached(placement="weights")
        learn(model, "a")
        base = getattr(model, way)()
        assert not base._forward_pre_hooks
        assert "generate" not in vars(base)


# Who answers ---------------------------------------------------------------------------------------------------


def mixed() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of different lengths, padded at the left, and their mask."""
    batch, mask = random_tokens(3, 3, 9), torch.ones(3, 9, dtype=torch.long)
    for row, padding in enumerate((5, 0, 2)):
        batch[row, :padding], mask[row, :padding] = PADDING, 0
    return batch, mask


@each_placement
def test_each_row_of_a_batch_is_answered_as_its_own_task(placement: str) -> None:
    model = attached(placement=placement)
    learn(model, "a", seed=1, lr=0.01)
    learn(model, "b", seed=2, lr=0.01)
    batch, mask = mixed()
    names = ["b", None, "a"]
    model.set_task(names)
    together = logits_of(model, batch, attention_mask=mask)
    written = model.generate(input_ids=batch, attention_mask=mask, **GENERATION)[:, 9:]
    beams = model.generate(input_ids=batch, attention_mask=mask, num_beams=3, **GENERATION)[:, 9:]
    assert torch.equal(logits_of(model, batch, attention_mask=mask), together)
    for row, name in enumerate(names):
        model.set_task([name])
        own = slice(row, row + 1)
        prompt = {"input_ids": batch[own, mask[row] == 1], "attention_mask": mask[own, mask[row] == 1]}
        alone = model(**prompt).logits
        torch.testing.assert_close(together[own, mask[row] == 1], alone, rtol=1e-5, atol=1e-5)
        length = prompt["input_ids"].shape[1]
        assert torch.equal(model.generate(**prompt, **GENERATION)[0, length:], written[row])
        assert torch.equal(model.generate(**prompt, num_beams=3, **GENERATION)[0, length:], beams[row])


def test_a_list_of_another_length_than_the_batch_is_refused(two_tasks: PeftModel) -> None:
    for names, rows in ((["a", "b", "a"], 2), (["a", "b"], 3), (["a", "b"], 1)):
        two_tasks.set_task(names)
        with pytest.raises(HimalayaError, match=rf"set_task was given {len(names)} tasks, the batch has {rows} rows"):
            logits_of(two_tasks, random_tokens(batch=rows))
    two_tasks.set_task("a")
    with pytest.raises(HimalayaError, match="set_task was given no task"):
        two_tasks.set_task([])


def test_what_has_no_rows_cannot_have_a_task_for_each() -> None:
    model = attached(placement="weights")
    learn(model, "a")
    learn(model, "b")
    b = logits_of(model)
    model.set_task(["a", "b"])
    layer = next(one for one in model.modules() if isinstance(one, HashedLinear))
    for call in (model.merge_adapter, lambda: layer(torch.zeros(2, layer.in_features))):
        with pytest.raises(HimalayaError, match="the batch has 1 rows; one task is needed for a merge"):
            call()
    model.set_task(["b", "b"])
    assert torch.equal(logits_of(model), b)
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), b, rtol=1e-4, atol=1e-4)


def test_names_of_adapters_are_refused_where_names_of_tasks_are_meant(two_tasks: PeftModel) -> None:
    batch = random_tokens(batch=1)
    for call in (two_tasks, two_tasks.generate):
        with pytest.raises(HimalayaError, match=r"^adapter_names: HIMALAYA answers a whole batch .* model\.set_task"):
            call(input_ids=batch, adapter_names=["default"])


def test_an_answer_does_not_choose_its_task(two_tasks: PeftModel) -> None:
    """In one pass over prompt and answer the tokens from the first label on are not read."""
    asked, answers = prompts(1, 20)[:, 1:], prompts(2, 20, 12)
    batch = torch.cat([asked, answers], dim=1)
    labels = batch.clone()
    labels[:, :6] = -100
    names = [name for name, _ in two_tasks.infer_task(asked)]
    assert [name for name, _ in two_tasks.infer_task(batch)] != names
    two_tasks.set_task(names)
    wanted = two_tasks(input_ids=batch, labels=labels).loss
    two_tasks.set_task(None)
    assert two_tasks(input_ids=batch, labels=labels).loss == wanted
    with two_tasks.disable_adapter():
        frozen = two_tasks(input_ids=batch, labels=batch).loss
    assert two_tasks(input_ids=batch, labels=batch).loss == frozen, "no prompt, no task"


def test_a_prompt_of_a_kind_that_was_never_learnt_is_answered_as_the_frozen_model(two_tasks: PeftModel) -> None:
    strange = torch.randint(100, 128, (4, 7), generator=torch.Generator().manual_seed(9))
    batch = torch.cat([prompts(1, 1), strange])
    (name, sure), *others = two_tasks.infer_task(batch)
    assert (name, sure) == ("a", 1.0)
    assert [name for name, _ in others] == [None] * 4
    assert all(0 < confidence < 1 for _, confidence in others)
    two_tasks.set_task(["a", None, None, None, None])
    wanted = logits_of(two_tasks, batch)
    two_tasks.set_task(None)
    assert torch.equal(logits_of(two_tasks, batch), wanted)
    with two_tasks.disable_adapter():
        assert torch.equal(logits_of(two_tasks, batch)[1:], wanted[1:])


def test_names_are_compared_in_one_form() -> None:
    model = attached()
    learn(model, "caf\u00e9", seed=1)
    asked = prompts(1)
    assert [name for name, _ in model.infer_task(asked, ["cafe\u0301"])] == ["cafe\u0301"] * 6
    assert model.remembers_task("cafe\u0301")


def test_a_prompt_is_answered_as_the_task_that_it_looks_like(two_tasks: PeftModel) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        asked = prompts(seed)
        assert [found for found, _ in two_tasks.infer_task(asked)] == [name] * 6
        assert [found for found, _ in two_tasks.infer_task(asked, [])] == [None] * 6
    batch = torch.cat([prompts(2, 1), prompts(1, 2)])
    two_tasks.set_task(["b", "a", "a"])
    wanted = logits_of(two_tasks, batch)
    two_tasks.set_task(None)
    base, embeddings = two_tasks.get_base_model(), two_tasks.get_input_embeddings()(batch)
    with torch.no_grad():
        found = {
            "named": two_tasks(input_ids=batch),
            "positional": two_tasks(batch),
            "positional, base model": base(batch),
            "positional mask": base(batch, torch.ones_like(batch)),
            "embedded": two_tasks(inputs_embeds=embeddings),
            "embedded, with a mask": two_tasks(inputs_embeds=embeddings, attention_mask=torch.ones_like(batch)),
        }
    for how, output in found.items():
        assert torch.equal(output.logits, wanted), how
    padded = torch.cat([torch.full((3, 4), PADDING), batch], dim=1)
    mask = (padded != PADDING).long()
    mask[:, 4:] = 1
    logits = logits_of(two_tasks, padded, attention_mask=mask)[:, 4:]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_has_one_task_for_the_whole_generation(two_tasks: PeftModel, use_cache: bool, beams: int) -> None:
    """Also where every step passes the whole text again, whose end then looks like another task."""
    batch = torch.cat([prompts(2, 1), prompts(1, 1)])
    settings = {**GENERATION, "max_new_tokens": 20, "min_new_tokens": 20, "num_beams": beams, "use_cache": use_cache}
    two_tasks.set_task(["b", "a"])
    wanted = two_tasks.generate(input_ids=batch, **settings)
    reads = []
    adapter = adapter_of(two_tasks)
    two_tasks.set_task(None)
    original = adapter.read_prompts
    adapter.read_prompts = lambda *prompts: (reads.append(len(prompts[0])), original(*prompts))
    try:
        assert torch.equal(two_tasks.generate(input_ids=batch, **settings), wanted)
        assert torch.equal(two_tasks.get_base_model().generate(batch, **settings), wanted)
        embeddings = two_tasks.get_input_embeddings()(batch)
        assert torch.equal(two_tasks.generate(inputs_embeds=embeddings, **settings), wanted[:, batch.shape[1] :])
    finally:
        del adapter.read_prompts
    assert len(reads) == 3
    # The next prompt is read anew.
    two_tasks.set_task("a")
    other = two_tasks.generate(input_ids=prompts(1), **settings)
    two_tasks.set_task(None)
    assert torch.equal(two_tasks.generate(input_ids=prompts(1), **settings), other)


def test_a_prompt_that_is_read_in_chunks_chooses_its_task_as_a_whole(two_tasks: PeftModel) -> None:
    batch = torch.cat([prompts(2, 1), prompts(1, 1)])
    given = {"input_ids": batch, "attention_mask": torch.ones_like(batch), **GENERATION}
    two_tasks.set_task(None)
    two_tasks.generate(**given)
    whole = adapter_of(two_tasks).rows
    two_tasks.set_task(None)
    two_tasks.generate(**given, prefill_chunk_size=2)
    assert adapter_of(two_tasks).rows == whole
    assert len({*whole}) == 2


def test_a_prompt_whose_beginning_is_in_a_cache_chooses_no_task(two_tasks: PeftModel) -> None:
    tokens, cache = prompts(sum(b"a"), 1), DynamicCache()
    two_tasks.set_task("b")
    logits_of(two_tasks, tokens[:, :-2], past_key_values=cache)
    two_tasks.set_task(None)
    with pytest.raises(HimalayaError, match=r"^no prompt has been seen since set_task\(None\)"):
        two_tasks.generate(input_ids=tokens, attention_mask=tokens * 0 + 1, past_key_values=cache, **GENERATION)
    two_tasks.set_task("a")


def test_before_anything_was_learnt_a_prompt_is_answered_as_the_frozen_model() -> None:
    model = attached()
    base = logits_of(model)
    model.set_task(None)
    assert torch.equal(logits_of(model), base)
    assert model.infer_task(random_tokens()) == [(None, 0.0)] * 2


# One block --------------------------------------------------------------------------------------------------------


def steps(model: PeftModel, inputs: dict[str, torch.Tensor], protect: bool) -> None:
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    handles = model.protect(optimizer) if protect else []
    model.train()
    for _ in range(3):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    model.eval()


@each_placement
def test_a_task_in_a_block_is_learnt_as_with_the_single_verbs(placement: str) -> None:
    model, other = attached(placement=placement), attached(placement=placement)
    tokens = random_tokens(97, 2, 8)
    labels = tokens.clone()
    labels[:, :4] = -100
    inputs = {"input_ids": tokens, "labels": labels}
    other.start_task("a")
    other.observe_prompts(tokens[:, :4])  # the second and third pass show nothing new
    steps(other, inputs, protect=True)
    other.end_task()
    with model.learning("a"):
        steps(model, inputs, protect=False)
    assert model.tasks == ["a"]
    assert_same(model, snapshot(other))
    before = snapshot(model)
    adapter_of(model).atoms.grad = torch.ones_like(adapter_of(model).atoms)
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0).step()
    assert_same(model, before)  # after the block no optimiser is watched


def test_prompts_are_found_in_padded_packed_and_padding_free_rows(caplog: pytest.LogCaptureFixture) -> None:
    tokens = random_tokens(3, 3, 8)
    labels = tokens.clone()
    for row, length in enumerate((3, 4, 2)):
        labels[row, :length] = -100
    padding = torch.full((3, 2), PADDING)
    padded = {
        "input_ids": torch.cat([padding, tokens], dim=1),
        "attention_mask": torch.cat([padding * 0, tokens * 0 + 1], dim=1),
        "labels": torch.cat([padding * 0 - 100, labels], dim=1),
    }
    positions = torch.arange(8).repeat(3)[None]
    free = {"input_ids": tokens.view(1, -1), "labels": labels.view(1, -1), "position_ids": positions}
    wanted = attached()
    wanted.start_task("a")
    for row, length in enumerate((3, 4, 2)):
        wanted.observe_prompts(tokens[row : row + 1, :length])
    moment = adapter_of(wanted).router.task_moment
    assert moment[-1, -1] == 3
    plain = {"input_ids": tokens, "labels": labels}
    # One row of positions for all, positions that begin elsewhere, and three of each token, as models of images have.
    others = [plain | {"position_ids": one} for one in (torch.arange(8)[None], torch.arange(8)[None] + 1)]
    three = plain | {"position_ids": torch.arange(8).expand(3, 3, 8)}
    embeddings, mask = model_rows(three)
    assert [row[one == 1].tolist() for row, one in zip(embeddings, mask, strict=True)] == tokens.tolist()
    for inputs in (plain, padded, free, *others):
        model = attached().train()
        model.start_task("a")
        model.watch_prompts()
        model(**inputs)
        torch.testing.assert_close(adapter_of(model).router.task_moment, moment, rtol=1e-5, atol=1e-5)
        model.eval()(**inputs)
        model.train()(input_ids=tokens)
        assert adapter_of(model).router.task_moment[-1, -1] == 3, "no training pass, or no labels"
    model.end_task()
    assert not caplog.records
    with model.learning("b"):
        model(input_ids=tokens, labels=tokens).loss.backward()
    (record,) = caplog.records
    assert record.getMessage().startswith("no prompt was seen in training, for no pass was given labels, or no row")


def model_rows(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    found = _unpacked(inputs)
    return found["input_ids"], found["attention_mask"]


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.zeros(2, 2)])
def test_labels_of_whole_rows_follow_all_of_a_prompt(labels: torch.Tensor) -> None:
    base = LlamaForSequenceClassification(Case(llama).base().config)
    model = get_peft_model(base, HimalayaConfig(task_type="SEQ_CLS", **SMALL)).train()
    with model.learning("a"):
        model(input_ids=random_tokens(1, 2, 8), labels=labels).loss.backward()
    assert adapter_of(model).router.counts[0] == 2


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("how", [ValueError, KeyboardInterrupt])
def test_after_an_exception_in_a_block_the_adapter_is_as_before(known: bool, how: type[BaseException]) -> None:
    model = attached()
    learn(model, "a")
    if known:
        learn(model, "b")
    model.set_task("a")
    before, logits = snapshot(model), logits_of(model)
    with pytest.raises(how), model.learning("b"):  # noqa: PT012
        model.observe_prompts(prompts(1))
        train(model)
        raise how
    assert_same(model, before)
    assert adapter_of(model).atoms.grad is None
    assert torch.equal(logits_of(model), logits)
    assert model.tasks == (["a", "b"] if known else ["a"])


def test_blocks_do_not_nest_and_hold_one_task() -> None:
    model = attached()
    before = snapshot(model)
    for other, message in (("b", "is being learnt: before task 'b' begins"), ("a", "was ended, or another one")):
        with pytest.raises(HimalayaError, match=rf"^task 'a' {message}"), model.learning("a"), model.learning(other):
            pass
        assert_same(model, before)
    another = lambda: (model.drop_task(), model.start_task("b"))  # noqa: E731
    for verb in (model.end_task, another, lambda: model.forget_task("a")):
        message = r"^task 'a' was ended, or another one started, inside of its block"
        with pytest.raises(HimalayaError, match=message), model.learning("a"):  # noqa: PT012
            train(model)
            verb()
        assert_same(model, before)


@pytest.mark.parametrize("known", [False, True])
def test_a_task_that_is_dropped_is_as_before_it_began(known: bool) -> None:
    model = attached()
    learn(model, "a")
    if known:
        learn(model, "b")
    stored, logits = adapter_of(model).dictionary.elastic.clone(), logits_of(model)
    learn(model, "b", seed=7, end=False)
    model.drop_task()
    assert model.open_task is None
    assert model.tasks == (["a", "b"] if known else ["a"])
    model.set_task("b" if known else "a")
    assert torch.equal(logits_of(model), logits)
    assert torch.equal(adapter_of(model).dictionary.elastic, stored)
    model.drop_task()  # nothing is open
    assert torch.equal(logits_of(model), logits)


def test_a_loop_in_evaluation_mode_measures_channels_and_sees_prompts(caplog: pytest.LogCaptureFixture) -> None:
    """As the model comes from a file: ``from_pretrained`` leaves it so, and the adapter is attached to it."""
    model, tokens = attached(), random_tokens(1, 2, 8)
    model.train().base_model.model.eval()  # the backbone; the adapter is beside it
    labels = tokens.clone()
    labels[:, :4] = -100
    with model.learning("a"):
        model(input_ids=tokens, labels=labels).loss.backward()
    assert adapter_of(model).channels.any()
    assert adapter_of(model).router.counts[0] == 2
    assert not caplog.records
    asleep = attached().eval()
    with asleep.learning("a"):
        asleep(input_ids=tokens, labels=labels).loss.backward()
    assert torch.equal(adapter_of(asleep).channels, adapter_of(model).channels)


def test_a_batch_with_more_rows_than_names_is_refused(two_tasks: PeftModel) -> None:
    two_tasks.set_task(["a", "b"])
    assert two_tasks(input_ids=random_tokens(0, 2)).logits.isfinite().all()
    with pytest.raises(HimalayaError, match=r"^set_task was given 2 tasks, the batch has 4 rows"):
        two_tasks(input_ids=random_tokens(0, 4))
    tokens = random_tokens(0, 2)
    beams = two_tasks.generate(input_ids=tokens, attention_mask=tokens * 0 + 1, num_beams=2, **GENERATION)
    assert len(beams) == 2
    for call in (two_tasks, partial(two_tasks.generate, **GENERATION)):
        with pytest.raises(HimalayaError, match=r"^set_task was given 2 tasks, the batch has 4 rows"):
            call(input_ids=random_tokens(0, 4))
    two_tasks.set_task("a")


def test_modules_that_all_tasks_would_train_allow_one_task() -> None:
    model = attached(modules_to_save=["lm_head"])
    learn(model, "caf\u00e9")
    learn(model, "cafe\u0301")  # the same task
    before = snapshot(model)
    for call in (partial(model.start_task, "b"), partial(model.forget_task, "caf\u00e9"), model.drop_task):
        with pytest.raises(
            HimalayaError, match=r"\): modules_to_save, or parameters of the model itself, are trained"
        ):
            call()
    with pytest.raises(ValueError, match="no"), model.learning("caf\u00e9"):  # noqa: PT012
        train(model)
        raise ValueError("no")
    assert_same(model, before)


def test_a_second_task_does_not_train_the_model_itself() -> None:
    model = attached()
    learn(model, "a")
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(
        HimalayaError, match=r"^start_task\('b'\): modules_to_save, or parameters of the model itself,"
    ):
        model.start_task("b")
    model.get_input_embeddings().weight.requires_grad_(False)
    model.start_task("b")


def test_what_is_taken_back_while_merged_leaves_the_weights_as_they_were() -> None:
    model = attached(placement="weights")
    base = logits_of(model)
    with pytest.raises(HimalayaError, match=r"unmerge it before end_task\(\)$"), model.learning("a"):  # noqa: PT012
        train(model)
        model.merge_adapter()
    torch.testing.assert_close(logits_of(model), base, rtol=1e-4, atol=1e-4)
    learn(model, "a", end=False)
    model.merge_adapter()
    with pytest.raises(HimalayaError, match=r"unmerge it before drop_task\(\)$"):
        model.drop_task()
    with pytest.raises(HimalayaError, match=r"unmerge it before learning\('b'\)$"), model.learning("b"):
        pass
    model.unmerge_adapter()
    model.drop_task()
    torch.testing.assert_close(logits_of(model), base, rtol=1e-4, atol=1e-4)


def test_of_two_active_adapters_both_begin_or_forget_a_task_or_none() -> None:
    model = attached()
    model.add_adapter("small", HimalayaConfig(task_type="CAUSAL_LM", atoms_per_task=3, elastic_atoms=3, max_tasks=1))
    learn(model, "only here")
    model.base_model.set_adapter(["default", "small"])
    model.start_task("a")
    model.end_task()
    before = snapshot(model)
    with pytest.raises(HimalayaError, match=r"^no room for task 'b'"):
        model.start_task("b")
    with pytest.raises(HimalayaError, match=r"^unknown task 'only here'"):
        model.forget_task("only here")
    assert_same(model, before)


def test_a_file_is_read_while_one_of_its_tasks_is_learnt_further(tmp_path: Path) -> None:
    model = attached()
    learn(model, "a")
    learn(model, "b")
    model.save_pretrained(tmp_path)
    before = snapshot(model)
    learn(model, "b", seed=9, end=False)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert_same(model, before)


def test_the_prompts_of_a_task_that_is_started_twice_are_still_watched() -> None:
    model, tokens = attached().train(), random_tokens(1, 2, 8)
    labels = tokens.clone()
    labels[:, :4] = -100
    model.start_task("a")
    model.watch_prompts()
    model(input_ids=tokens[:1], labels=labels[:1])
    model.start_task("a")  # it goes on
    model(input_ids=tokens, labels=labels)
    assert adapter_of(model).router.task_moment[-1, -1] == 2
    model.end_task()
    assert adapter_of(model).router.counts[0] == 2


@pytest.mark.parametrize("size", [1.0, 1e25])
def test_a_start_anew_forgets_how_much_the_atoms_mattered(size: float) -> None:
    model = attached(evict=True)
    model.train().start_task("a")
    adapter = adapter_of(model)
    adapter.atoms.grad = torch.full_like(adapter.atoms, size)
    optimizer = torch.optim.SGD([adapter.atoms], lr=0.0)
    model.protect(optimizer)
    optimizer.step()
    assert torch.equal(adapter.fisher.energy, torch.full((3,), 1 / 3))
    with torch.no_grad():
        adapter.atoms[0, 0] = torch.nan
    model.start_task("a")
    assert not adapter.fisher.energy.any()
