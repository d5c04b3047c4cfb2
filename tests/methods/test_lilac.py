"""LILAC against its formula in float64, its parameters, its release file."""

from pathlib import Path

import pytest
import torch
from families import STATIC_CASES, Case, llama, random_tokens
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from himalaya_adapter import save_release
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.lilac import LilacConfig, LilacLayer, SharedDictionary, pack, unpack
from himalaya_adapter.methods.linear_delta import SCALING

CASE = STATIC_CASES["lilac-llama"]
WEIGHTS = "adapter_model.safetensors"


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=random_tokens(seed=9, batch=8)).logits


def random_state(scale: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"dictionary": (64, 100)} | {f"layers.{i}.lilac_{kind}": (4, 64) for i in range(12) for kind in "AB"}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# The formula ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (6, 3), (3, 8)])
def test_the_update_is_the_product_of_both_combinations(inputs: int, outputs: int) -> None:
    rank, atoms, width = 2, 5, 8
    model = get_peft_model(
        nn.ModuleDict({"target": nn.Linear(inputs, outputs), "widest": nn.Linear(width, 1)}),
        LilacConfig(target_modules=["target", "widest"], lora_rank=rank, dictionary_size=atoms, init_weights=False),
    ).double()
    layer = model.base_model.model["target"]
    dictionary = model.base_model.lilac_shared["default"].dictionary
    assert dictionary.shape == (atoms, width)
    first, second = layer.lilac_A["default"], layer.lilac_B["default"]
    assert first.shape == second.shape == (rank, atoms)
    dense = torch.zeros(outputs, inputs, dtype=torch.float64)
    for component in range(rank):
        inward = sum(first[component, atom] * dictionary[atom, :inputs] for atom in range(atoms))
        outward = sum(second[component, atom] * dictionary[atom, :outputs] for atom in range(atoms))
        dense += SCALING * torch.outer(outward, inward)
    torch.testing.assert_close(layer.get_delta_weight("default"), dense)
    x = torch.randn(7, inputs, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ dense.T)


def test_the_gradients_are_those_of_the_formula() -> None:
    layer = LilacLayer(nn.Linear(5, 3).double())
    holder = SharedDictionary(4, 6).double()
    layer.shared["default"] = holder
    layer.add_adapter("default", LilacConfig(lora_rank=2, dictionary_size=4, init_weights=False))
    layer.double().set_adapter(["default"])
    x = torch.randn(2, 5, dtype=torch.float64)
    parameters = (holder.dictionary, layer.lilac_A["default"], layer.lilac_B["default"])
    assert all(parameter.requires_grad for parameter in parameters)
    assert torch.autograd.gradcheck(lambda *_: layer(x), parameters)


def test_all_layers_share_one_dictionary_and_own_their_coefficients() -> None:
    model = CASE.adapted()
    layers, modules, rank, atoms, width = 2, 4, 4, 64, 64
    assert model.get_nb_trainable_parameters()[0] == atoms * width + layers * modules * 2 * rank * atoms
    dictionaries = {id(one.shared["default"].dictionary) for one in model.modules() if isinstance(one, LilacLayer)}
    assert dictionaries == {id(model.base_model.lilac_shared["default"].dictionary)}


@pytest.mark.parametrize("field", ["lora_rank", "dictionary_size"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}=0 must be at least 1$"):
        LilacConfig(**{field: 0})


@pytest.mark.parametrize("bits", [0, 1, 9, 17])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"^quantisation_bits={bits} is not one of 2, 3, 4, 5, 6, 7, 8, 16$"):
        LilacConfig(quantisation_bits=bits)


# The release file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lilac-llama", "lilac-qwen2-oblong"])
def test_a_release_answers_nearly_as_the_adapter_it_was_made_from(name: str, tmp_path: Path) -> None:
    case = STATIC_CASES[name]
    model = case.adapted()
    parts = save_release(model, tmp_path)
    assert sum(parts.values()) == (tmp_path / WEIGHTS).stat().st_size
    model.save_pretrained(tmp_path / "training")
    assert sum(parts.values()) < (tmp_path / "training" / WEIGHTS).stat().st_size / 2
    released = PeftModel.from_pretrained(case.base(), tmp_path).eval()
    base, ours, theirs = logits_of(case.base()), logits_of(model), logits_of(released)
    assert not torch.equal(ours, theirs)
    assert torch.nn.functional.cosine_similarity(ours - base, theirs - base, dim=-1).mean() > 0.999


def test_a_release_is_read_into_the_layers_it_was_made_from(tmp_path: Path) -> None:
    """With 12 layers the order of names is not that of numbers; nothing may depend on which it is."""
    case = Case(lambda: llama(12), method=LilacConfig)
    model = case.adapted()
    save_release(model, tmp_path)
    released = PeftModel.from_pretrained(case.base(), tmp_path)
    theirs = dict(released.named_parameters())
    for name, tensor in model.named_parameters():
        if "lilac_" in name:
            assert (theirs[name] - tensor).abs().max() < 0.02 * tensor.abs().max(), name


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_more_bits_are_closer_and_small_numbers_are_not_lost(scale: float) -> None:
    state, errors = random_state(scale), []
    for bits in (2, 4, 8, 16):
        config = LilacConfig(quantisation_bits=bits)
        restored = unpack(pack(state, config), config, state)
        assert restored.keys() == state.keys()
        errors.append(max((restored[name] - state[name]).abs().max().item() / scale for name in state))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.03
    assert errors[3] < 2e-3


def test_a_fresh_adapter_is_released_as_the_no_op_that_it_is(tmp_path: Path) -> None:
    save_release(CASE.adapted(fresh=True), tmp_path)
    assert torch.equal(logits_of(PeftModel.from_pretrained(CASE.base(), tmp_path).eval()), logits_of(CASE.base()))


def test_saving_a_loaded_release_writes_the_same_bytes(tmp_path: Path) -> None:
    save_release(CASE.adapted(), tmp_path / "first")
    released = PeftModel.from_pretrained(CASE.base(), tmp_path / "first", adapter_name="another")
    save_release(released, tmp_path / "second", adapter_name="another")
    assert (tmp_path / "second" / WEIGHTS).read_bytes() == (tmp_path / "first" / WEIGHTS).read_bytes()


def test_a_release_is_for_inference_only(tmp_path: Path) -> None:
    save_release(CASE.adapted(), tmp_path)
    with pytest.raises(HimalayaError, match=r"^a release file is for inference only"):
        PeftModel.from_pretrained(CASE.base(), tmp_path, is_trainable=True)
    released = PeftModel.from_pretrained(CASE.base(), tmp_path)
    released.train().set_adapter("default")  # which PEFT lets anybody do, and which unfreezes
    with pytest.raises(HimalayaError, match=r"^a release file is for inference only"):
        released(input_ids=random_tokens())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_release_is_loaded_beside_the_adapter_that_trains(low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = CASE.adapted()
    ours = logits_of(model)
    save_release(model, tmp_path)
    alone = logits_of(PeftModel.from_pretrained(CASE.base(), tmp_path).eval())
    model.load_adapter(tmp_path, "released", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits_of(model.eval()), ours)
    model.set_adapter("released")
    assert torch.equal(logits_of(model.eval()), alone)
    model.set_adapter("default")
    model.delete_adapter("released")
    assert torch.equal(logits_of(model.eval()), ours)


# Files that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["training", "release"])
def test_a_file_that_does_not_fit_is_one_line(kind: str, tmp_path: Path) -> None:
    case = Case(lambda: llama(3), method=LilacConfig)
    model = CASE.adapted()
    model.save_pretrained(tmp_path / "training")
    save_release(model, tmp_path / "release")
    with pytest.raises(HimalayaError, match=r"the adapter file does not fit: '.*lilac_A.*' is .*, expected") as caught:
        PeftModel.from_pretrained(case.base(), tmp_path / kind)
    assert "\n" not in str(caught.value)


def test_one_bit_changed_in_a_release_is_noticed(tmp_path: Path) -> None:
    save_release(CASE.adapted(), tmp_path)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(HimalayaError, match="the release file is damaged"):
        PeftModel.from_pretrained(CASE.base(), tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = CASE.adapted()
    with torch.no_grad():
        model.base_model.lilac_shared["default"].dictionary[3, 7] = torch.nan
    with pytest.raises(HimalayaError, match=r"^'dictionary' holds values that are not finite"):
        save_release(model, tmp_path / "release")
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS)["base_model.lilac_shared.dictionary"].isnan().any()
    with pytest.raises(HimalayaError, match=r"^'dictionary' holds values that are not finite"):
        PeftModel.from_pretrained(CASE.base(), tmp_path)
