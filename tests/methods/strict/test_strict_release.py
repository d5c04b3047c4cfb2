"""A release file: small, closed, for inference, and close to the adapter that it was made from."""

import json
from pathlib import Path

import pytest
import torch
from families import STRICT_CASES, WIDTH, Case, llama, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig, StrictAdapter
from himalaya_adapter.methods.himalaya_strict.release import pack, unpack
from himalaya_adapter.methods.quantization import GROUP
from himalaya_adapter.methods.release import save_release, seal

WEIGHTS = "adapter_model.safetensors"
FILES = {"adapter_config.json", WEIGHTS}
# All that a release may hold. Nothing of the training's state, no tokens, no text, nothing per task or layer.
SCHEMA = {
    "dictionary.smoothing": torch.float16,
    "dictionary.core.codes": torch.uint8,
    "dictionary.core.scale": torch.float16,
    "dictionary.core.minimum": torch.float16,
    "dictionary.elastic.codes": torch.uint8,
    "dictionary.elastic.scale": torch.float16,
    "dictionary.elastic.minimum": torch.float16,
    "router.head.values": torch.int8,
    "router.head.scale": torch.float32,
    "router.projection.values": torch.int8,
    "router.projection.scale": torch.float32,
    "router.offset": torch.float32,
    "code": torch.float32,
    "in_use": torch.bool,
    "tree.thresholds": torch.float32,
    "tree.axes": torch.int64,
    "tree.spread": torch.float32,
    "tree.path": torch.int64,
    "memory.covariance": torch.float32,
    "memory.means": torch.float32,
    "memory.codes": torch.bool,
    "memory.tasks": torch.int64,
    "memory.closed": torch.int64,
    "checksum": torch.uint8,
}
HALF_SCHEMA = {
    **{name: SCHEMA[name] for name in SCHEMA if not name.startswith(("dictionary.", "router.head", "router.proj"))},
    **dict.fromkeys(("dictionary.core", "dictionary.elastic", "router.head", "router.projection"), torch.float16),
}


def trained(case: Case = STRICT_CASES["strict-stream"], **changes) -> PeftModel:
    """A model whose adapter has learnt two tasks with large steps, so that all of its state is in use."""
    model = get_peft_model(case.base(), case.config(**changes))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.protect(optimizer)
    torch.manual_seed(0)  # gates are sampled in training
    for task in range(2):
        model.train().start_task(f"task {task}")
        model.observe_prompts(random_tokens(task, batch=8))
        for _ in range(4):
            model(input_ids=random_tokens(task), labels=random_tokens(task)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.end_task()
    return model.eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens(seed=9, batch=8)).logits


def shared_of(model: PeftModel) -> StrictAdapter:
    return model.base_model.himalaya_strict_shared["default"]


def opened(folder: Path, case: Case = STRICT_CASES["strict-stream"], **arguments) -> PeftModel:
    return PeftModel.from_pretrained(case.base(), folder, **arguments)


def random_state(seed: int, config: HimalayaStrictConfig, width: int) -> dict[str, torch.Tensor]:
    """The state of an adapter with random atoms and head, as after any training."""
    shared = StrictAdapter(config, width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        shared.router.head.copy_(torch.randn(shared.router.head.shape, generator=generator))
        shared.dictionary.elastic.copy_(torch.randn(shared.dictionary.elastic.shape, generator=generator))
        shared.dictionary.return_to_sphere(torch.ones(config.elastic_atoms, dtype=torch.bool))
    return {name: tensor.clone() for name, tensor in shared.state_dict().items()}


@pytest.mark.parametrize(("bits", "schema"), [(3, SCHEMA), (8, SCHEMA), (16, HALF_SCHEMA)])
def test_the_schema_of_a_release_is_closed(bits: int, schema: dict, tmp_path: Path) -> None:
    model = trained(quantisation_bits=bits)
    model.start_task("canary-task-name")
    parts = save_release(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert all(b"canary-task-name" not in path.read_bytes() for path in tmp_path.iterdir())
    stored = load_file(tmp_path / WEIGHTS)
    assert {name.removeprefix("base_model.himalaya_strict_shared."): t.dtype for name, t in stored.items()} == schema
    assert parts.keys() == schema.keys() | {"header"}
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["released"] is True


@pytest.mark.parametrize("case", STRICT_CASES.values(), ids=STRICT_CASES.keys())
def test_a_release_opens_and_answers_nearly_as_the_adapter_it_was_made_from(case: Case, tmp_path: Path) -> None:
    model = trained(case)
    save_release(model, tmp_path)
    released = opened(tmp_path, case).eval()
    base, ours, theirs = logits_of(case.base()), logits_of(model), logits_of(released)
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(ours, theirs, dim=-1).mean() > 0.995
    assert similarity(ours - base, theirs - base, dim=-1).mean() > 0.9  # what the adapter does, without the base
    tokens = random_tokens(length=5)
    answers = released.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert answers.shape == (2, 9)


def test_a_release_recognises_the_task_of_a_prompt_as_before(tmp_path: Path) -> None:
    model = trained()
    save_release(model, tmp_path)
    released = opened(tmp_path).eval()
    prompts, names = random_tokens(0, batch=8), ["task 0", "task 1"]
    found = released.infer_task(prompts, names)
    assert found == model.infer_task(prompts, names)
    assert [name for name, _ in found] == ["task 0"] * 8
    assert [released.remembers_task(name) for name in ("task 0", "never")] == [True, False]
    released.set_task(None)
    by_itself = released(input_ids=prompts).logits
    released.set_task("task 0")
    torch.testing.assert_close(by_itself, released(input_ids=prompts).logits)


def test_more_bits_are_closer(tmp_path: Path) -> None:
    errors = []
    for bits in (2, 8, 16):
        model = trained(quantisation_bits=bits)
        save_release(model, tmp_path / str(bits))
        atoms = shared_of(opened(tmp_path / str(bits))).dictionary.atoms()
        errors.append((atoms - shared_of(model).dictionary.atoms()).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20 * errors[1]
    assert errors[2] < 0.01


@pytest.mark.parametrize("bits", [3, 16])
def test_saving_a_loaded_release_writes_the_same_bytes(bits: int, tmp_path: Path) -> None:
    save_release(trained(quantisation_bits=bits), tmp_path / "first")
    released = opened(tmp_path / "first", adapter_name="another")
    released.set_task("some task")
    released.save_pretrained(tmp_path / "second")
    save_release(released, tmp_path / "third", adapter_name="another")
    first = (tmp_path / "first" / WEIGHTS).read_bytes()
    assert (tmp_path / "second" / "another" / WEIGHTS).read_bytes() == first
    assert (tmp_path / "third" / WEIGHTS).read_bytes() == first
    again = opened(tmp_path / "second" / "another")
    for name, tensor in shared_of(opened(tmp_path / "first")).state_dict().items():
        assert torch.equal(tensor, shared_of(again).state_dict()[name]), name


def test_an_adapter_of_the_first_format_that_can_be_trained_on_is_one_of_the_second() -> None:
    assert HimalayaStrictConfig(format_version=1).format_version == HimalayaStrictConfig().format_version == 2


def test_the_model_that_was_released_is_unchanged_and_trains_on(tmp_path: Path) -> None:
    model = trained()
    config = model.peft_config["default"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_release(model, tmp_path)
    assert model.peft_config["default"] is config
    assert not config.released
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    model.start_task("a third one")
    model.save_pretrained(tmp_path / "training")
    assert shared_of(opened(tmp_path / "training", is_trainable=True)).packed is None


def test_a_release_is_for_inference_only(tmp_path: Path) -> None:
    save_release(trained(), tmp_path)
    released = opened(tmp_path)
    released.set_task("task 1")
    way_out = "^a release file is for inference only: to train on, load the adapter that it was made from$"
    with pytest.raises(HimalayaError, match=way_out):
        released.start_task("new")
    with pytest.raises(HimalayaError, match=way_out):
        opened(tmp_path, is_trainable=True)
    with pytest.raises(HimalayaError, match=way_out):
        get_peft_model(llama(), STRICT_CASES["strict-stream"].config(released=True))
    released.train().set_adapter("default")  # which PEFT lets anybody do, and which unfreezes
    with pytest.raises(HimalayaError, match=way_out):
        released(input_ids=random_tokens())
    assert logits_of(released.eval()).isfinite().all()


def test_releases_and_adapters_in_training_live_side_by_side(tmp_path: Path) -> None:
    model = trained()
    save_release(model, tmp_path)
    alone = logits_of(opened(tmp_path).eval())
    model.load_adapter(tmp_path, "released")
    ours = logits_of(model.eval())
    model.set_adapter("released")
    assert torch.equal(logits_of(model.eval()), alone)
    assert not torch.equal(ours, alone)
    parts = save_release(model, tmp_path / "copy", adapter_name="released")
    assert (tmp_path / "copy" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()
    assert model.stored_bytes() == {name: size for name, size in parts.items() if name != "header"}


def test_loading_with_little_memory_gives_the_same(tmp_path: Path) -> None:
    save_release(trained(), tmp_path)
    sparing = opened(tmp_path, low_cpu_mem_usage=True).eval()
    assert not any(tensor.is_meta for tensor in sparing.state_dict().values())
    assert torch.equal(logits_of(sparing), logits_of(opened(tmp_path).eval()))


@given(seed=st.integers(0, 2**32 - 1), bits=st.sampled_from([2, 3, 5, 8, 16]), width=st.sampled_from([64, 100]))
@settings(max_examples=15)
def test_the_bounds_hold_after_quantisation(seed: int, bits: int, width: int) -> None:
    """Atoms have length 1 and the update's norm, on dense vectors, is at most 1, whatever was quantised."""
    config = HimalayaStrictConfig(quantisation_bits=bits, hidden_params=20_000, code_width=16)
    state = random_state(seed, config, width)
    shared = StrictAdapter(config, width)
    shared.load_state_dict(state | unpack(pack(state, config), config, state))
    shared.in_use.fill_(True)
    assert shared.dictionary.largest_norm() <= 1 + 1e-6
    inputs = torch.randn(200, width, generator=torch.Generator().manual_seed(seed)) * 10
    with torch.no_grad():
        update = shared.eval()(inputs, width)
        shared.train()(inputs, width)
    assert 0.5 < shared.norm_certificate()["update_norm_max"] <= 1 + 1e-6
    assert (update.norm(dim=-1) <= width**0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [3, 16])
def test_every_byte_is_accounted_for(bits: int, tmp_path: Path) -> None:
    model = trained(quantisation_bits=bits)
    parts = save_release(model, tmp_path)
    assert sum(parts.values()) == (tmp_path / WEIGHTS).stat().st_size
    atoms, head, projection = 40, shared_of(model).router.head, shared_of(model).router.projection
    if bits == 16:
        assert parts["dictionary.core"] + parts["dictionary.elastic"] == 2 * atoms * WIDTH
        assert parts["router.head"] == 2 * head.numel()
    else:
        for tier, (count, width) in {"core": (24, bits), "elastic": (16, 2 * bits)}.items():
            assert parts[f"dictionary.{tier}.codes"] == count * WIDTH * width // 8
            assert (
                parts[f"dictionary.{tier}.scale"] == parts[f"dictionary.{tier}.minimum"] == 2 * count * WIDTH // GROUP
            )
        assert parts["router.head.values"] == head.numel()
        assert parts["router.projection.values"] == projection.numel()
    model.save_pretrained(tmp_path / "training")
    assert (tmp_path / "training" / WEIGHTS).stat().st_size > 10 * sum(parts.values()) / (1 if bits == 3 else 2)


def test_the_bytes_depend_on_neither_layers_nor_tasks(tmp_path: Path) -> None:
    parts = save_release(trained(), tmp_path / "few")
    many = Case(lambda: llama(4), method=HimalayaStrictConfig).adapted(fresh=True)
    for task in range(6):
        many.start_task(f"task {task}")
        many.end_task()
    assert save_release(many, tmp_path / "many") == parts


@pytest.mark.parametrize(("width", "most"), [(576, 92_000), (4096, 207_000)])
def test_the_size_at_the_width_of_real_models(width: int, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    config = HimalayaStrictConfig()
    state = random_state(0, config, width)
    packed = pack(state, config)
    sizes = {name: tensor.nbytes for name, tensor in packed.items()}
    atoms, restored = (
        torch.cat([one["dictionary.core"], one["dictionary.elastic"]])
        for one in (state, unpack(packed, config, state))
    )
    core, elastic = torch.nn.functional.cosine_similarity(atoms, restored).split([24, 16])
    with capsys.disabled():
        print(f"\nrelease at width {width}: {sum(sizes.values())} bytes, {sizes}")
        print(f"mean cosines: core {core.mean():.4f}, elastic {elastic.mean():.5f}")
    assert sizes["dictionary.core.codes"] == 24 * width * 3 // 8
    assert sizes["dictionary.elastic.codes"] == 16 * width * 6 // 8
    assert sum(sizes.values()) < most
    assert core.mean() > 0.975
    assert core.min() > 0.95
    assert elastic.min() > 0.999


def test_shapes_and_types_are_known_without_values() -> None:
    """A budget can be told on the meta device, before any weight is loaded."""
    config = HimalayaStrictConfig()
    state = random_state(0, config, 576)
    real = {name: (tensor.shape, tensor.dtype) for name, tensor in pack(state, config).items()}
    empty = pack({name: tensor.to("meta") for name, tensor in state.items()}, config)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in empty.items()} == real


def test_the_checksum_tells_every_change() -> None:
    config = HimalayaStrictConfig()
    packed = pack(random_state(0, config, 64), config)
    checksum = seal(packed)["checksum"]
    assert torch.equal(seal(dict(reversed(packed.items())))["checksum"], checksum)
    for name, tensor in packed.items():
        altered = tensor.clone()
        altered.view(-1).view(torch.uint8)[-1] ^= 1
        assert not torch.equal(seal(packed | {name: altered})["checksum"], checksum), name
        if tensor.dim() > 1:
            assert not torch.equal(seal(packed | {name: tensor.flatten()})["checksum"], checksum), name


def test_what_cannot_be_released_is_refused_in_one_line(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(HimalayaError, match="unknown adapter 'defualt'; did you mean 'default'"):
        save_release(model, tmp_path, adapter_name="defualt")
    model.save_pretrained(tmp_path / "adapter")
    saved = (tmp_path / "adapter" / WEIGHTS).read_bytes()
    with pytest.raises(HimalayaError, match="holds an adapter that can be trained on: choose another folder"):
        save_release(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / WEIGHTS).read_bytes() == saved
    with torch.no_grad():
        shared_of(model).dictionary.elastic[3, 7] = torch.nan
    with pytest.raises(HimalayaError, match=r"^'dictionary\.elastic' holds values that are not finite"):
        save_release(model, tmp_path / "release")
    assert not (tmp_path / "release").exists()
    assert not model.peft_config["default"].released


@pytest.mark.parametrize("bits", [0, 1, 9, 12, 17])
def test_bits_out_of_range_are_refused_by_the_config(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"^quantisation_bits={bits} is not one of 2, 3, 4, 5, 6, 7, 8, 16$"):
        HimalayaStrictConfig(quantisation_bits=bits)
