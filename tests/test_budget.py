"""What an adapter costs, counted without weights, against what is saved and computed with them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_runs import write_backbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from himalaya_adapter.backbones import BACKBONES, load_backbone
from himalaya_adapter.backbones.shape import ShapeMode, backbone_shape
from himalaya_adapter.budget import (
    BYTES_PER_MB,
    TOKENS,
    ElementCounter,
    check_budget,
    check_size,
    count_budget,
    count_work,
)
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.methods.construction import adapt, run_method
from himalaya_adapter.methods.release import save_release

SOURCE = "run=proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
LILAC_SOURCE = "run=comparative-1-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
LORA_OPTIONS = "{r: 4, target_modules: [q_proj, down_proj]}"
METHODS = {
    "himalaya": ["model.adapter.type=HIMALAYA"],
    "himalaya on weights": [
        *("model.adapter.type=HIMALAYA", "model.adapter.options={placement: weights, target_modules: [k_proj]}"),
    ],
    "himalaya strict": ["model.adapter.type=HIMALAYA_STRICT"],
    "lora": ["model.adapter.type=LORA", f"model.adapter.options={LORA_OPTIONS}"],
    "lora and a whole module": [
        *("model.adapter.type=LORA", "model.adapter.options={modules_to_save: [lm_head], target_modules: [q_proj]}"),
    ],
    "pissa": [
        *("model.adapter.type=LORA", "model.adapter.options={init_lora_weights: pissa, target_modules: [q_proj]}"),
    ],
    "vera": ["model.adapter.type=VERA", "model.adapter.options={r: 8, target_modules: [q_proj]}"],
    "ia3": ["model.adapter.type=IA3"],
    "lilac": ["model.adapter.type=LILAC", "model.adapter.lora_rank=2"],
    "coltas": ["model.adapter.type=COLTAS", "model.adapter.options={components: 16, target_modules: [down_proj]}"],
    "glodis": ["model.adapter.type=GLODIS", "model.adapter.options={target_modules: [k_proj, gate_proj]}"],
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a tiny Llama, narrow for its queries and wide for its MLP."""
    return tmp_path_factory.mktemp("budget") / "backbone"


@pytest.fixture
def run(
    backbone: Path, tiny_model: Callable[..., LlamaForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., RunConfig]:
    """A function that composes a run on the tiny Llama: ``run(*words)``."""
    if not backbone.is_dir():
        write_backbone(backbone, tiny_model, tiny_tokenizer)
    words = ["run=demo-himalaya", f"model.backbone.name={backbone}", "model.backbone.dtype=float32"]
    return lambda *more: compose_run([*words, *more]).run


# Bytes and parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_are_those_of_the_saved_file(method: str, run: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run(*METHODS[method])
    budget = count_budget(config)
    model = adapt(load_backbone(config.model.backbone.name, dtype="float32").model, run_method(config), 0)
    model.save_pretrained(tmp_path)
    assert sum(budget.stored.values()) == (tmp_path / "adapter_model.safetensors").stat().st_size
    assert sum(budget.trainable.values()) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    "more",
    [[], ["model.adapter.options={modules_to_save: [lm_head], quantisation_bits: 4}"], METHODS["lilac"]],
)
def test_the_release_bytes_are_those_of_the_release_file(
    more: list[str], run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = run(*more)
    budget = count_budget(config)
    model = adapt(load_backbone(config.model.backbone.name, dtype="float32").model, run_method(config), 0)
    save_release(model, tmp_path)
    assert budget.released is not None
    assert sum(budget.released.values()) == (tmp_path / "adapter_model.safetensors").stat().st_size
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert len(budget.released) == 1 + len(file.keys())


def test_the_parts_of_all_layers_are_summed(run: Callable[..., RunConfig]) -> None:
    budget = count_budget(run(*METHODS["lora"]))
    width, inner, rank, layers = 64, 128, 4, 2
    assert budget.trainable == {
        "layers.*.self_attn.q_proj.lora_A.weight": layers * rank * width,
        "layers.*.self_attn.q_proj.lora_B.weight": layers * rank * width,
        "layers.*.mlp.down_proj.lora_A.weight": layers * rank * inner,
        "layers.*.mlp.down_proj.lora_B.weight": layers * rank * width,
    }
    header = {"header": budget.stored["header"]}
    assert budget.stored == header | {part: 4 * count for part, count in budget.trainable.items()}
    assert budget.released is None
    assert budget.router is None


def test_the_budget_is_a_bound_and_not_a_byte_less(run: Callable[..., RunConfig]) -> None:
    size = sum(count_budget(run()).stored.values())
    exact = size / BYTES_PER_MB
    config = run(f"model.adapter.total_parameter_budget_mb={exact}")
    check_budget(config, run_method(config))
    with pytest.raises(HimalayaError, match=r"the adapter takes .* MB \(.* of them router\.task_moment\)"):
        check_budget(run(f"model.adapter.total_parameter_budget_mb={(size - 1) / BYTES_PER_MB}"), run_method(config))
    with pytest.raises(HimalayaError, match=r"takes 3 MB \(2 of them b\), .* allows 2\.5: lower"):
        check_size({"a": 1_000_000, "b": 2_000_000}, 2.5)


def test_the_budget_counts_the_bits_in_which_an_adapter_is_stored(run: Callable[..., RunConfig]) -> None:
    sizes = {
        bits: sum(count_budget(run(*METHODS["lora"], f"model.adapter.bits={bits}")).stored.values())
        for bits in ("null", 16, 3)
    }
    assert sizes["null"] > sizes[16] > sizes[3]
    words = [*METHODS["lora"], f"model.adapter.total_parameter_budget_mb={sizes[3] / BYTES_PER_MB}"]
    config = run(*words, "model.adapter.bits=3")
    check_budget(config, run_method(config))
    for bits in ("null", 16):
        with pytest.raises(HimalayaError, match="the adapter takes"):
            check_budget(run(*words, f"model.adapter.bits={bits}"), run_method(config))


# Operations ----------------------------------------------------------------------------------------------------


def test_matrix_products_are_counted_as_the_formula_says(run: Callable[..., RunConfig]) -> None:
    width, inner, heads, keys, layers, rank = 64, 128, 4, 2, 2, 4
    vocabulary = backbone_shape(run().model.backbone.name).vocab_size
    head = width // heads
    weights = layers * (2 * width * width + 2 * width * keys * head + 3 * width * inner) + width * vocabulary
    attention = layers * 2 * TOKENS * width  # per token: queries times keys, weights times values
    work = count_work(run(*METHODS["lora"]))
    assert work.bare.products == 2 * TOKENS * (weights + attention)
    added = layers * rank * (width + width + inner + width)
    assert work.adapted.products - work.bare.products == 2 * TOKENS * added
    assert work.overhead == pytest.approx(added / (weights + attention))


@pytest.mark.parametrize("method", ["himalaya", "himalaya on weights"])
def test_an_adapter_computes_what_was_counted(method: str, run: Callable[..., RunConfig]) -> None:
    """The same counters around a forward pass with real weights."""
    config = run(*METHODS[method])
    work = count_work(config)
    loaded = load_backbone(config.model.backbone.name, dtype="float32").model
    loaded.set_attn_implementation("eager")
    model = adapt(loaded, run_method(config), 0).eval()
    model.start_task("a")
    model.end_task()
    tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    with torch.no_grad():
        model(input_ids=tokens)  # makes the vectors, or the factors, once
        with FlopCounterMode(display=False) as counter:
            model(input_ids=tokens)
    assert counter.get_total_flops() == work.adapted.products > work.bare.products
    width, layers, rank = 64, 2, 1
    keys = 32  # outputs of k_proj
    added = layers * (width if method == "himalaya" else rank * (width + keys))
    assert work.adapted.products - work.bare.products == 2 * TOKENS * added


def test_other_operations_are_counted_by_the_numbers_they_touch() -> None:
    matrix = torch.ones(3, 4)

    def count(operation: Callable[[], Any]) -> int:
        with ElementCounter() as counter:
            operation()
        return counter.total

    assert count(lambda: matrix + 1) == 12
    assert count(lambda: matrix.sum()) == 12  # read, though one number comes out
    assert count(lambda: matrix[:, :1] * torch.ones(5)) == 5 + 15  # the row of ones, then the outer product
    assert count(lambda: matrix @ matrix.T) == 0
    assert count(lambda: matrix.view(4, 3).T) == 0
    assert count(lambda: nn.functional.relu(matrix).exp()) == 24


# The two backbones of the catalogue ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_source_run_keeps_its_bounds_at_llama_2() -> None:
    source = compose_run([SOURCE]).run
    budget, work = count_budget(source), count_work(source)
    assert sum(budget.stored.values()) < 2.5 * BYTES_PER_MB
    assert budget.released is not None
    assert sum(budget.released.values()) < 1 * BYTES_PER_MB
    assert budget.router <= 45_000
    assert 0 < work.overhead + work.element_overhead < 0.04
    assert 0 < work.element_overhead < work.overhead
    assert 1.69e12 < work.bare.products < 1.71e12  # 2 x 128 tokens x 6.6e9 weights, and attention


@pytest.mark.slow  # a second backbone of 32 layers, layer by layer
def test_the_source_run_of_lilac_keeps_its_budget_at_llama_2() -> None:
    lilac = compose_run([LILAC_SOURCE]).run
    budget = count_budget(lilac)
    layers, modules, rank, atoms, width = 32, 4, 4, 64, 4096
    assert sum(budget.trainable.values()) == atoms * width + layers * modules * 2 * rank * atoms == 327_680
    assert sum(budget.stored.values()) < 3.5 * BYTES_PER_MB
    assert budget.released is not None
    assert sum(budget.released.values()) < 0.45 * BYTES_PER_MB
    assert budget.router is None
    assert 0 < count_work(lilac).overhead < 0.04


def test_the_bytes_do_not_depend_on_the_layers(
    tiny_model: Callable[..., LlamaForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sizes = []
    for layers in (1, 2, 5):
        folder = write_backbone(tmp_path / str(layers), tiny_model, tiny_tokenizer, num_hidden_layers=layers)
        budget = count_budget(compose_run(["run=demo-himalaya", f"model.backbone.name={folder}"]).run)
        sizes.append((dict(budget.stored), budget.released, budget.trainable))
    assert sizes[0] == sizes[1] == sizes[2]


def test_the_catalogue_knows_shapes_in_full() -> None:
    llama = backbone_shape("NousResearch/Llama-2-7b-hf")
    assert (llama.hidden_size, llama.num_hidden_layers, llama.intermediate_size) == (4096, 32, 11008)
    assert all(source.shape for source in BACKBONES.values())


def test_a_copied_module_keeps_its_mode() -> None:
    """The copy of a mode would free memory that it does not own; PEFT copies what it trains whole."""
    mode = ShapeMode()
    with mode:
        embedding = nn.Embedding(3, 2)
    assert copy.deepcopy(embedding).weight.fake_mode is mode


# Refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.backbone.name=smollm2-135"], "unknown backbone 'smollm2-135'; did you mean 'smollm2-135m'"),
        (["model.adapter.type=HIMALYA"], "unknown method 'himalya'"),
        (["model.adapter.options.target_modules=[nothing]"], "HIMALAYA does not fit LlamaForCausalLM"),
        (["model.adapter.options.elastic_atoms=3"], "atoms_per_task=24 must be at most 3: the slots, elastic_atoms=3"),
        (
            ["model.adapter.type=LN_TUNING", "model.adapter.options={target_modules: [input_layernorm]}"],
            "what method LN_TUNING with these options costs cannot be counted without the backbone's weights",
        ),
    ],
)
def test_what_cannot_be_counted_is_one_line(words: list[str], message: str, run: Callable[..., RunConfig]) -> None:
    with pytest.raises(HimalayaError) as caught:
        count_budget(run(*words))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HimalayaError, match=f"the config of backbone '{tmp_path}' could not be read: "):
        backbone_shape(str(tmp_path))
