"""Other methods of PEFT by name: trained, saved, loaded as the runner does it, and counted before they are run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import llama, random_tokens
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tiny_runs import ADAPTERS, write_backbone, write_run, write_stream

from himalaya_adapter.budget import count_budget, count_work
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import RunConfig, compose_run
from himalaya_adapter.experiments.model_config import AdapterConfig, BackboneConfig, ModelConfig
from himalaya_adapter.experiments.run_config import DatasetConfig
from himalaya_adapter.methods.construction import adapt, method_config
from himalaya_adapter.report.budget_tables import budget_tables
from himalaya_adapter.storage import read_json
from himalaya_adapter.training.stream_runner import run_stream

QUERIES = {"target_modules": ["q_proj"]}
METHODS: dict[str, dict[str, Any]] = {
    "IA3": {},
    "VERA": {"r": 8} | QUERIES,
    "ROAD": {"group_size": 32},
    "LILY": {"r": 4, "target_modules": ["q_proj", "o_proj"]},
    "VBLORA": {"vector_length": 16, "num_vectors": 32} | QUERIES,
    "FOURIERFT": {"n_frequency": 64} | QUERIES,
    "WAVEFT": {"n_frequency": 64} | QUERIES,
    "ADALORA": {"total_step": 10} | QUERIES,
    "RANDLORA": {"r": 8} | QUERIES,
    "LOREFT": {"r": 2},
    "O_LORA": {"r": 2} | QUERIES,
}
UNCOUNTED_OPERATIONS = ("WAVEFT",)


def base() -> Any:
    torch.manual_seed(0)
    return llama().eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=random_tokens()).logits


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    base().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_learn_save_load_and_count(method: str, backbone: Path, tmp_path: Path) -> None:
    model = adapt(base(), method_config(method, METHODS[method]), seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(5):
        loss = model.train()(input_ids=random_tokens(), labels=random_tokens()).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    other = adapt(base(), method_config(method, METHODS[method]), seed=0)
    assert not torch.equal(logits_of(other), logits_of(model))
    set_peft_model_state_dict(other, load_file(file))
    assert torch.equal(logits_of(other), logits_of(model))

    adapted = ModelConfig(BackboneConfig(str(backbone), dtype="float32"), AdapterConfig(method, METHODS[method]))
    run = RunConfig("run", "comparative", method, adapted, DatasetConfig("demo_stream_6"))
    budget, work = count_budget(run), count_work(run)
    assert sum(budget.stored.values()) == file.stat().st_size
    assert sum(budget.trainable.values()) == model.get_nb_trainable_parameters()[0]
    assert (work.adapted is None) == (method in UNCOUNTED_OPERATIONS)
    assert len(budget_tables(run, budget, work)) == 2


def test_a_method_without_verbs_goes_through_a_stream(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LILY: its layers share tensors, of which a file holds one copy."""
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    monkeypatch.setitem(ADAPTERS, "LILY", {"type": "LILY", "options": METHODS["LILY"]})
    path = write_run(tmp_path, backbone, write_stream(tmp_path), "LILY", max_updates_per_task=2)
    folder = run_stream(compose_run([f"run={path}"]).run, tmp_path / "results")
    assert read_json(folder / "metrics.json")["method"] == "lily"


@pytest.mark.parametrize(
    ("method", "options"),
    [("PROMPT_TUNING", {"num_virtual_tokens": 4}), ("PREFIX_TUNING", {"num_virtual_tokens": 4}), ("POLY", QUERIES)],
)
def test_a_method_that_a_stream_cannot_run_is_one_line(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(HimalayaError, match=f"method {method} needs more than a pass's tokens") as caught:
        method_config(method, options)
    assert "\n" not in str(caught.value)
