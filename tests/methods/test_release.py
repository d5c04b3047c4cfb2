"""A release of HIMALAYA: a part of the training file, for inference, with the same answers bit for bit."""

import copy
import json
from pathlib import Path

import pytest
import torch
from families import Case, llama, random_tokens
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from himalaya_adapter import HimalayaConfig, save_release
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.release import seal

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAMES = ("first", "second")
LEFT_OUT = {"atoms", "router.task_moment"}
each_placement = pytest.mark.parametrize("placement", ["residual_stream", "weights"])


def learnt(placement: str = "residual_stream") -> PeftModel:
    """A model that has learnt two tasks."""
    model = get_peft_model(
        Case(llama).base(), HimalayaConfig(task_type="CAUSAL_LM", placement=placement, elastic_atoms=48)
    )
    for seed, name in enumerate(NAMES):
        model.start_task(name)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        model.protect(optimizer)
        model.observe_prompts(random_tokens(seed, batch=8))
        model.train()(input_ids=random_tokens(seed), labels=random_tokens(seed)).loss.backward()
        optimizer.step()
        model.end_task()
    return model.eval()


def answers(model: PeftModel) -> list[torch.Tensor]:
    """Of both tasks; the task that answered before answers again."""
    found = []
    with torch.no_grad():
        for name in NAMES:
            model.set_task(name)
            found.append(model(input_ids=random_tokens(9)).logits)
    return found


def opened(folder: Path, **arguments) -> PeftModel:
    return PeftModel.from_pretrained(Case(llama).base(), folder, **arguments).eval()


@each_placement
def test_a_release_is_a_part_of_the_training_file_and_answers_the_same_bit_for_bit(placement, tmp_path: Path) -> None:
    model = learnt(placement)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "adapter")
    parts = save_release(model, tmp_path / "release")
    assert {path.name for path in (tmp_path / "release").iterdir()} == {CONFIG, WEIGHTS}
    whole, part = (load_file(tmp_path / kind / WEIGHTS) for kind in ("adapter", "release"))
    prefix = "base_model.himalaya_shared."
    assert part.pop(f"{prefix}checksum").shape == (32,)
    assert whole.keys() - part.keys() == {prefix + name for name in LEFT_OUT}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())
    assert sum(parts.values()) == (tmp_path / "release" / WEIGHTS).stat().st_size
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert not model.peft_config["default"].released

    wanted = answers(model)
    assert not torch.equal(*wanted)
    for kind in ("adapter", "release"):
        loaded = opened(tmp_path / kind)
        assert all(torch.equal(one, other) for one, other in zip(answers(loaded), wanted, strict=True))
        assert loaded.tasks == list(NAMES)
        assert loaded.infer_task(random_tokens(1, batch=8)) == model.infer_task(random_tokens(1, batch=8))
        assert loaded.task_hash("first") == model.task_hash("first")
    sparing = opened(tmp_path / "release", low_cpu_mem_usage=True)
    assert all(torch.equal(one, other) for one, other in zip(answers(sparing), wanted, strict=True))


def test_a_release_is_saved_again_as_the_same_bytes_and_lives_beside_others(tmp_path: Path) -> None:
    model = learnt()
    save_release(model, tmp_path / "first")
    wanted = (tmp_path / "first" / WEIGHTS).read_bytes()
    released = opened(tmp_path / "first", adapter_name="another")
    released.set_task("first")
    released.save_pretrained(tmp_path / "second")
    save_release(released, tmp_path / "third", adapter_name="another")
    assert (tmp_path / "second" / "another" / WEIGHTS).read_bytes() == wanted
    assert (tmp_path / "third" / WEIGHTS).read_bytes() == wanted
    model.load_adapter(tmp_path / "first", "released")
    mine = answers(model)
    model.set_adapter("released")
    assert all(torch.equal(one, other) for one, other in zip(answers(model), mine, strict=True))
    sizes = save_release(model, tmp_path / "fourth", "released")
    assert model.stored_bytes() == {name: size for name, size in sizes.items() if name != "header"}


def test_a_release_is_for_inference_only(tmp_path: Path) -> None:
    save_release(learnt(), tmp_path)
    released = opened(tmp_path)
    way_out = "^a release file is for inference only: to train on, load the adapter that it was made from$"
    with pytest.raises(HimalayaError, match=way_out):
        released.start_task("third")
    with pytest.raises(HimalayaError, match=way_out):
        opened(tmp_path, is_trainable=True)
    released.train().set_adapter("default")  # which PEFT lets anybody do, and which unfreezes
    with pytest.raises(HimalayaError, match=way_out):
        released(input_ids=random_tokens())
    with pytest.raises(HimalayaError, match=way_out):
        released.start_task("third")


def test_what_is_not_stored_yet_is_not_released_without_it(tmp_path: Path) -> None:
    """A task that is being learnt, or was learnt without a name, would be missing without a word."""
    for name in ("third", "first", None):
        model = learnt()
        if name is not None:
            model.start_task(name)
        with torch.no_grad():
            model.base_model.himalaya_shared["default"].atoms.add_(0.01)
        with pytest.raises(HimalayaError, match=r"not stored yet: call model\.end_task\(\) before save_release"):
            save_release(model, tmp_path)
        assert not (tmp_path / WEIGHTS).exists()
    model = learnt()
    model.start_task("third")  # nothing is learnt yet
    save_release(model, tmp_path)
    assert opened(tmp_path).tasks == list(NAMES)


def test_a_release_for_another_place_of_the_backbone_names_no_revision_of_the_first(tmp_path: Path) -> None:
    model = learnt()
    model.peft_config["default"].revision = "sha256:0"  # of the folder that it has learnt on
    for options, revision in (({}, "sha256:0"), ({"base_model": "owner/name"}, None)):
        save_release(model, tmp_path, **options)
        assert json.loads((tmp_path / CONFIG).read_text())["revision"] == revision


def test_what_cannot_be_released_is_refused_in_one_line(tmp_path: Path) -> None:
    model = learnt()
    with pytest.raises(HimalayaError, match="unknown adapter 'defualt'; did you mean 'default'"):
        save_release(model, tmp_path, adapter_name="defualt")
    model.save_pretrained(tmp_path / "adapter")
    saved = (tmp_path / "adapter" / WEIGHTS).read_bytes()
    with pytest.raises(HimalayaError, match="holds an adapter that can be trained on: choose another folder"):
        save_release(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / WEIGHTS).read_bytes() == saved
    with torch.no_grad():
        model.base_model.himalaya_shared["default"].router.task_moment[0, 3] = torch.nan
    with pytest.raises(HimalayaError, match=r"^'router\.task_moment' holds values that are not finite"):
        save_release(model, tmp_path / "release")
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    "change", [{"norm_bound": 1.0}, {"active_atoms": 1}, {"seed": 7}, {"layers_to_transform": [0, 1]}, {"evict": True}]
)
def test_a_release_whose_config_was_edited_is_refused(change: dict, tmp_path: Path) -> None:
    save_release(learnt(), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "moved", "revision": "main"}))
    opened(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(HimalayaError, match=r"does not match its checksum, which covers adapter_config\.json"):
        opened(tmp_path)


def test_a_release_of_the_version_before_loads_with_a_warning(tmp_path: Path, caplog) -> None:
    model = learnt()
    save_release(model, tmp_path)
    prefix = "base_model.himalaya_shared."
    found = {name.removeprefix(prefix): tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    del found["checksum"]
    save_file({prefix + name: tensor for name, tensor in seal(found).items()}, tmp_path / WEIGHTS)
    pairs = zip(answers(opened(tmp_path)), answers(model), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert "its checksum does not cover adapter_config.json" in caplog.text


def test_a_model_in_16_bits_is_released_with_its_tasks(tmp_path: Path) -> None:
    model = learnt()
    hashes = [model.task_hash(name) for name in NAMES]
    save_release(model.to(torch.bfloat16), tmp_path)
    released = opened(tmp_path)
    assert [released.task_hash(name) for name in NAMES] == hashes
    assert json.loads((tmp_path / CONFIG).read_text())["released"] is True


def test_a_release_of_a_classifier_answers_the_same(tmp_path: Path) -> None:
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_labels=3)
    base = LlamaForSequenceClassification(config).eval()
    model = get_peft_model(copy.deepcopy(base), HimalayaConfig(task_type="SEQ_CLS", init_weights=False)).eval()
    model.end_task()
    save_release(model, tmp_path)
    released = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        logits = [one(input_ids=random_tokens()).logits for one in (model, released)]
    assert torch.equal(*logits)


def test_a_release_of_when_other_settings_were_the_default_keeps_its_checksum() -> None:
    config = HimalayaConfig(atoms_per_task=12, elastic_atoms=768, max_tasks=64, layers=2)  # the defaults then
    checksum = bytes(seal({"a": torch.arange(3)}, config)["checksum"].tolist()).hex()
    assert checksum == "848fc122c589c58b5eea932f39247933b873d56aee346cea9fe42f96e3715358"
