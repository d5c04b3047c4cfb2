"""What is promised for any number of layers and tasks: nothing is forgotten, no file grows, norms are bounded."""

from pathlib import Path

import pytest
import torch
from families import llama, random_tokens
from learning import PLACEMENTS, adapter_of, attached, learn, logits_of
from peft import PeftModel, get_peft_model
from safetensors import safe_open

from himalaya_adapter import HimalayaConfig, save_release
from himalaya_adapter.methods.himalaya import HimalayaAdapter

WEIGHTS = "adapter_model.safetensors"
# Every tensor that an adapter may store. Nothing else may appear: no tokens, no text but the tasks' names.
SCHEMA = {
    "atoms": torch.float32,
    "channels": torch.int8,
    "dictionary.core": torch.uint8,
    "dictionary.elastic": torch.uint8,
    "tasks.names": torch.uint8,
    "tasks.numbers": torch.int16,
    "tasks.coefficients": torch.int8,
    "tasks.learnt": torch.bool,
    "tasks.open_row": torch.int64,
    "tasks.answers": torch.int64,
    "router.means": torch.uint8,
    "router.spreads": torch.uint8,
    "router.counts": torch.uint8,
    "router.task_moment": torch.float32,
}
# And where slots may be evicted.
FISHER = {
    "fisher.residuals": torch.int8,
    "fisher.seen": torch.int64,
    "fisher.importance": torch.float32,
    "fisher.energy": torch.float32,
}
LARGEST_FILE = 2_500_000


def file_size(model: PeftModel, folder: Path) -> int:
    model.save_pretrained(folder)
    return (folder / WEIGHTS).stat().st_size


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_hundred_tasks_and_none_is_forgotten(placement: str, tmp_path: Path) -> None:
    """Every task's logits are bit for bit at the end what they were right after it was learnt."""
    tasks = 100 if placement == "residual_stream" else 12
    model = attached(placement=placement, elastic_atoms=3 * tasks, max_tasks=tasks)
    learnt, sizes, hashes = {}, [], {}
    for number in range(tasks):
        name = f"task {number}"
        assert learn(model, name, seed=number, steps=2, lr=0.01) == []
        learnt[name], hashes[name] = logits_of(model), model.task_hash(name)
        if number in (0, 24, 99):
            sizes.append((file_size(model, tmp_path / str(number)), model.stored_bytes()))
    assert model.tasks == list(learnt)
    assert all(size == sizes[0] for size in sizes)
    file_size(model, tmp_path / "last")
    loaded = PeftModel.from_pretrained(attached().unload(), tmp_path / "last").eval()
    for name, logits in learnt.items():
        for one in (model, loaded):
            one.set_task(name)
            assert torch.equal(logits_of(one), logits), name
            assert one.task_hash(name) == hashes[name]
    assert len({*hashes.values()}) == tasks
    base = logits_of(attached().unload())
    assert all((logits - base).abs().max() > 1e-2 for logits in learnt.values())
    certificate = model.norm_certificate()
    assert ("update_norm_max" in certificate) == (placement == "residual_stream")
    assert 0.1 < certificate.get("update_norm_max", 1.0) <= 2 * (1 + 1e-5)
    assert 0.1 < certificate["atom_norm_max"] <= 1.05


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_layers_do_not_change_the_stored_bytes(placement: str, tmp_path: Path) -> None:
    sizes = []
    for layers in (2, 8):
        model = attached(lambda layers=layers: llama(layers), placement=placement)
        learn(model, "a")
        file_size(model, tmp_path / str(layers))
        sizes.append(model.stored_bytes())
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0])
def test_the_certificate_holds_whatever_the_steps_are(bound: float) -> None:
    """Large steps, no clipping: the bounds are a matter of construction, not of careful training."""
    model = attached(norm_bound=bound)
    for number in range(3):
        learn(model, f"task {number}", seed=number, steps=5, lr=10.0)
    certificate = model.norm_certificate()
    assert 0.9 * bound < certificate["update_norm_max"] <= bound * (1 + 1e-5)
    assert 0.9 < certificate["atom_norm_max"] <= 1.05
    # From outside, layer by layer: what a decoder layer returns, and what its edit makes of it.
    layers = model.get_base_model().get_decoder().layers
    hidden = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    for name in model.tasks:
        model.set_task(name)
        adapter = adapter_of(model)
        for number in range(len(layers)):
            write, read = adapter.of_pass(hidden)[number]
            change = (hidden @ read) * write
            assert (change.norm(dim=-1) <= bound * hidden.norm(dim=-1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("evict", [False, True])
def test_a_file_holds_the_tensors_of_its_schema_and_no_data(evict: bool, tmp_path: Path) -> None:
    model, tokens = attached(evict=evict), random_tokens(7)
    schema = SCHEMA | FISHER if evict else SCHEMA
    learn(model, "law", seed=7, end=False)
    model.observe_prompts(tokens)
    file_size(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", WEIGHTS, "README.md"}
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata() in (None, {"format": "pt"})
        stored = {key.removeprefix("base_model.himalaya_shared."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert {name: tensor.dtype for name, tensor in stored.items()} == schema
    # Integers could hold the tokens of a text: these count, or name a row or a slot.
    assert all(stored[name].shape == () for name, dtype in schema.items() if dtype == torch.int64)
    assert bytes(stored["tasks.names"].flatten().tolist()).rstrip(b"\0") == b"law"
    model.end_task()
    assert not adapter_of(model).router.task_moment.any()
    assert not adapter_of(model).atoms.any()


def test_the_file_is_small_at_the_shape_of_llama_2_7b() -> None:
    adapter = HimalayaAdapter(HimalayaConfig(layers=32), 4096)
    assert sum(adapter.stored_bytes().values()) < LARGEST_FILE
    assert adapter.atoms.numel() == 24 * 4096


def test_the_sizes_of_files_are_those_that_the_page_of_deployment_names(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "deployment.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.split("| part | bytes at d = 576 |")[1].split("\n\n")[0].splitlines()]
    *parts, release, training = [int(row[2].strip(" *").replace(",", "")) for row in rows[2:]]
    base = llama(1, hidden_size=576, intermediate_size=64)
    model = get_peft_model(base, HimalayaConfig(task_type="CAUSAL_LM"))
    assert file_size(model, tmp_path / "adapter") == training
    save_release(model, tmp_path / "release")
    assert (tmp_path / "release" / WEIGHTS).stat().st_size == release == sum(parts)
