"""Files that do not fit, are newer, cut off or altered: one clear line, and the model is as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import HIMALAYA_STREAM, llama, random_tokens
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from tiny_runs import write_backbone

from himalaya_adapter.deploy.adapter_folder import load_adapter
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.methods.release import save_release

CASE = HIMALAYA_STREAM["himalaya-llama"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.himalaya_shared."
KINDS = pytest.mark.parametrize("kind", ["adapter", "release"])
Tensors = dict[str, torch.Tensor]


def write_both(model: PeftModel, folder: Path) -> Path:
    """Write ``adapter`` and ``release`` into ``folder``."""
    model.save_pretrained(folder / "adapter")
    save_release(model, folder / "release")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(learnt(), tmp_path_factory.mktemp("written"))


def learnt(base: torch.nn.Module | None = None, **changes: Any) -> PeftModel:
    """A model whose adapter has learnt one task."""
    model = get_peft_model(CASE.base() if base is None else base, CASE.config(fresh=True, **changes))
    model.start_task("parity")
    model.observe_prompts(random_tokens())
    with torch.no_grad():
        model.base_model.himalaya_shared["default"].atoms.normal_(0, 0.05)
    model.end_task()
    return model


def snapshot(model: torch.nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: Tensors) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.nan_to_num(), after[name].nan_to_num()), name


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != PREFIX + name}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {PREFIX + name: change(tensors[PREFIX + name])}


def added(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(3)}


MISFITS = {
    "missing": ("adapter", without("tasks.answers"), r"'tasks\.answers' is nothing, expected int64 \["),
    "unknown": ("adapter", added(f"{PREFIX}surprise"), r"'surprise' is float32 \[3\], expected nothing"),
    "elsewhere": (
        "adapter",
        added("base_model.model.surprise"),
        r"model\.surprise' is float32 \[3\], expected",
    ),
    "shape": (
        "adapter",
        changed("dictionary.elastic", lambda tensor: tensor[:, :16].contiguous()),
        r"'dictionary\.elastic' is uint8 \[912, 16\], expected uint8 \[912, 32\]",
    ),
    "dtype": (
        "adapter",
        changed("router.task_moment", torch.Tensor.int),
        r"'router\.task_moment' is int32 \[121, 121\], expected float32 \[121, 121\]",
    ),
    "nan": (
        "adapter",
        changed("router.task_moment", lambda tensor: tensor / 0),
        r"'router\.task_moment' holds values .* not finite",
    ),
    "no tensors": ("adapter", lambda _: {}, "is nothing, expected"),
    "missing in a release": (
        "release",
        without("tasks.names"),
        r"'tasks\.names' is nothing, expected uint8",
    ),
    "no checksum": ("release", without("checksum"), r"'checksum' is nothing, expected uint8 \[32\]"),
    "shape in a release": (
        "release",
        changed("dictionary.elastic", lambda tensor: tensor[:-3].contiguous()),
        r"'dictionary\.elastic' is uint8 \[909, 32\], expected uint8 \[912, 32\]",
    ),
    "dtype in a release": (
        "release",
        changed("tasks.coefficients", torch.Tensor.float),
        r"'tasks\.coefficients' is float32 \[38, 24, 8\], expected int8 \[38, 24, 8\]",
    ),
    "one bit in a release": ("release", changed("tasks.learnt", torch.logical_not), "does not match its checksum"),
}


@pytest.mark.parametrize(("kind", "alter", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_file_that_does_not_fit_changes_nothing(
    kind: str, alter: Callable[[Tensors], Tensors], message: str, written: Path, tmp_path: Path
) -> None:
    tensors = alter(load_file(written / kind / WEIGHTS))
    model = PeftModel.from_pretrained(CASE.base(seed=1), written / kind)
    before, packed = snapshot(model), model.base_model.himalaya_shared["default"].packed
    with pytest.raises(HimalayaError, match=message) as caught:
        set_peft_model_state_dict(model, tensors)
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)
    assert model.base_model.himalaya_shared["default"].packed is packed

    shutil.copytree(written / kind, tmp_path / kind)
    save_file(tensors, tmp_path / kind / WEIGHTS)
    with pytest.raises(HimalayaError, match=message):
        PeftModel.from_pretrained(CASE.base(), tmp_path / kind)


def test_a_release_does_not_go_into_an_adapter_in_training_nor_the_other_way_round(written: Path) -> None:
    for kind, other in (("adapter", "release"), ("release", "adapter")):
        model = PeftModel.from_pretrained(CASE.base(), written / kind)
        before = snapshot(model)
        with pytest.raises(HimalayaError, match=r"the adapter file does not fit: .* another configuration"):
            set_peft_model_state_dict(model, load_file(written / other / WEIGHTS))
        assert_unchanged(model, before)


def test_what_fits_is_loaded_whole(written: Path) -> None:
    """Without this, a hook that loads nothing would pass the tests above."""
    wanted = PeftModel.from_pretrained(CASE.base(), written / "adapter")
    model = get_peft_model(CASE.base(), CASE.config(seed=3))
    model.add_adapter("second", CASE.config(seed=4))
    result = set_peft_model_state_dict(model, load_file(written / "adapter" / WEIGHTS), adapter_name="second")
    assert not result.unexpected_keys
    assert not any("second" in key for key in result.missing_keys)
    loaded, first = (get_peft_model_state_dict(model, adapter_name=name) for name in ("second", "default"))
    for name, tensor in get_peft_model_state_dict(wanted).items():
        assert torch.equal(loaded[name], tensor), name
    assert not torch.equal(first[f"{PREFIX}dictionary.core"], loaded[f"{PREFIX}dictionary.core"])


@KINDS
def test_modules_to_save_come_along_and_are_checked(kind: str, tmp_path: Path) -> None:
    model = learnt(modules_to_save=["lm_head"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.fill_(2)
    write_both(model, tmp_path)
    loaded = PeftModel.from_pretrained(CASE.base(), tmp_path / kind)
    assert (loaded.base_model.model.lm_head.modules_to_save["default"].weight == 2).all()
    tensors = load_file(tmp_path / kind / WEIGHTS)
    name = next(name for name in tensors if "lm_head" in name)
    before = snapshot(loaded)
    with pytest.raises(HimalayaError, match=r"lm_head.*weight' is float32 \[7, 64\], expected float32 \[128, 64\]"):
        set_peft_model_state_dict(loaded, tensors | {name: tensors[name][:7]})
    assert_unchanged(loaded, before)


@KINDS
def test_a_file_of_a_newer_version_is_refused_by_name(kind: str, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / kind, tmp_path / kind)
    config = json.loads((tmp_path / kind / CONFIG).read_text())
    assert config["format_version"] == 4
    (tmp_path / kind / CONFIG).write_text(json.dumps(config | {"format_version": 5}))
    with pytest.raises(ValueError, match=r"^format_version=5 is newer than 4, the newest that this himalaya"):
        PeftModel.from_pretrained(CASE.base(), tmp_path / kind)


def test_a_file_of_version_3_is_read_and_its_memory_of_gradients_left_out(written: Path, tmp_path: Path) -> None:
    evicting = get_peft_model(CASE.base(), HimalayaConfig(task_type="CAUSAL_LM", evict=True))
    evicting.save_pretrained(tmp_path / "evicting")
    held = {name: one for name, one in load_file(tmp_path / "evicting" / WEIGHTS).items() if ".fisher." in name}
    assert len(held) == 4
    for kind in ("adapter", "release"):
        shutil.copytree(written / kind, tmp_path / kind)
        config, tensors = json.loads((tmp_path / kind / CONFIG).read_text()), load_file(tmp_path / kind / WEIGHTS)
        (tmp_path / kind / CONFIG).write_text(json.dumps(config | {"format_version": 3}))
        save_file(tensors | (held if kind == "adapter" else {}), tmp_path / kind / WEIGHTS)
        loaded = PeftModel.from_pretrained(CASE.base(), tmp_path / kind)
        loaded.save_pretrained(tmp_path / f"{kind} again")
        again = load_file(tmp_path / f"{kind} again" / WEIGHTS)
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], one) for name, one in tensors.items())
        assert json.loads((tmp_path / f"{kind} again" / CONFIG).read_text())["format_version"] == 4


# What `adapter_config.json` of version 0.1 held beside fields that there are still.
OF_0_1 = {"gain": "learned", "norm_target": "update", "hidden_params": 45_000, "quantisation_bits": 16}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("loader", [AutoPeftModelForCausalLM, PeftModel])
def test_an_adapter_of_version_0_1_is_refused_with_the_version_that_reads_it(
    loader: Any, version: int, written: Path, tmp_path: Path
) -> None:
    shutil.copytree(written / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config | OF_0_1 | {"format_version": version}))
    base = [] if loader is AutoPeftModelForCausalLM else [CASE.base()]
    with pytest.raises(
        HimalayaError, match=r"^this adapter was written by himalaya-adapter 0\.1.*: load it with"
    ) as no:
        loader.from_pretrained(*base, tmp_path / "adapter")
    assert "\n" not in str(no.value)


# A run's folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A finished run of one task, as far as loading looks at it, with ``adapter`` and ``release``."""
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    folder = write_both(learnt(tiny_model()), tmp_path / "run")
    entry = {"name": str(backbone), "quantisation": None, "dtype": "float32"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"backbone": entry}}))
    (folder / "metrics.json").write_text(json.dumps({"tasks": [{"name": "parity"}]}))
    return folder


def test_a_run_answers_with_its_adapter_or_its_release(run: Path) -> None:
    for folder, released in ((run, False), (run / "adapter", False), (run / "release", True)):
        loaded = load_adapter(folder, task="parity")
        tokenizer, model = loaded.tokenizer, loaded.model
        assert model.peft_config["default"].released is released
        inputs = tokenizer("Is 4 even?", return_tensors="pt")
        assert (
            model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
        )
    shutil.rmtree(run / "release")
    with pytest.raises(HimalayaError, match="has lost its file adapter_model"):
        load_adapter(run / "release", task="parity")


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": (WEIGHTS, lambda _: b""),
    "cut in the header": (WEIGHTS, lambda content: content[:100]),
    "cut in half": (WEIGHTS, cut(0.5)),
    "last byte missing": (WEIGHTS, lambda content: content[:-1]),
    "longer": (WEIGHTS, lambda content: content + b"\0"),
    "huge header": (WEIGHTS, lambda content: b"\xff" * 8 + content[8:]),
    "header of other content": (WEIGHTS, lambda content: content.replace(b"dictionary", b"dictionari")),
    "another file": (WEIGHTS, lambda _: save({"weight": torch.zeros(3)})),
    "a pickle": (WEIGHTS, lambda _: b"\x80\x04\x95"),
    "config cut": (CONFIG, cut(0.5)),
    "config without a method": (CONFIG, lambda _: b"{}"),
    "config of another type": (CONFIG, lambda content: content.replace(b'"core_atoms": 24', b'"core_atoms": "many"')),
    "config of other sizes": (CONFIG, lambda content: content.replace(b'"core_atoms": 24', b'"core_atoms": 25')),
    "config of no method": (CONFIG, lambda content: content.replace(b'"HIMALAYA"', b'"NANGA_PARBAT"')),
}


@KINDS
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_run_is_one_clear_line(damage: str, kind: str, run: Path) -> None:
    name, spoil = DAMAGE[damage]
    path = run / kind / name
    content = path.read_bytes()
    assert spoil(content) != content
    path.write_bytes(spoil(content))
    with pytest.raises(HimalayaError, match=rf"/run/{kind}(/{CONFIG} is damaged| could not be loaded): .") as caught:
        load_adapter(run / kind, task="parity")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9, 1.0])
def test_a_bit_changed_anywhere_in_a_release_is_noticed(position: float, run: Path) -> None:
    path = run / "release" / WEIGHTS
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + int((len(content) - header - 1) * position)] ^= 1
    path.write_bytes(content)
    with pytest.raises(HimalayaError, match="could not be loaded: the release file is damaged"):
        load_adapter(run / "release", task="parity")


@KINDS
def test_a_pickled_file_is_never_looked_for(kind: str, run: Path) -> None:
    (run / kind / WEIGHTS).rename(run / kind / "adapter_model.bin")
    with pytest.raises(HimalayaError, match=r"has lost its file adapter_model\.safetensors"):
        load_adapter(run / kind, task="parity")


def test_a_damaged_file_leaves_a_loaded_model_as_it_was(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    model = get_peft_model(llama(), HimalayaConfig(task_type="CAUSAL_LM"))
    before = snapshot(model)
    with pytest.raises(SafetensorError):
        model.load_adapter(tmp_path / "adapter", "default")
    assert_unchanged(model, before)
