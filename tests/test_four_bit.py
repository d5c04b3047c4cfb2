"""An adapter on a 4-bit backbone (NF4) on the CPU: trained, saved, loaded on a fresh backbone, the same answers."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_runs import PRELOADED, write_backbone

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.methods.construction import adapt, method_config
from himalaya_adapter.methods.continual import continual

OPTIONS: dict[str, dict[str, Any]] = {
    "HIMALAYA": {},
    "HIMALAYA in the weights": {"placement": "weights"},
    "HIMALAYA_STRICT": {"core_atoms": 4, "elastic_atoms": 6, "hidden_params": 4000},
    "LILAC": {},
    "COLTAS": {},
    "GLODIS": {},
    "LOREFT": {"r": 4},
    "O_LORA": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
}
STEPS = 20
RATE = 0.05
# A factor's entries are an atom's times about sqrt(width): at the rate above its loss goes up and down.
RATES = {"HIMALAYA in the weights": 3e-3}


def answers(model: Any, tokenizer: Any) -> list[int]:
    inputs = tokenizer("Question: what colour is the sky?\nAnswer:", return_tensors="pt")
    output = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def train_save_load(place: Path, method: str) -> None:
    """Runs in a process of its own: bitsandbytes may abort one on a processor that it does not know."""
    torch.set_num_threads(1)
    backbone = load_backbone(str(place / "backbone"), quantisation="4-bit", dtype="float32")
    tokenizer = backbone.tokenizer
    untrained = answers(backbone.model, tokenizer)
    model = adapt(backbone.model, method_config(method.split()[0], OPTIONS[method]), seed=0)
    assert answers(model, tokenizer) == untrained, "a fresh adapter is a no-op"
    packed = {name: weight.clone() for name, weight in backbone.model.state_dict().items() if "absmax" in name}
    assert packed, "the weights are in 4 bits"

    batch = tokenizer("Question: what colour is the sky?\nAnswer: blue", return_tensors="pt")
    batch["labels"] = batch["input_ids"]
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATES.get(method, RATE))
    continual(model).start_task("sky", batch)
    continual(model).protect(optimizer)
    losses = []
    for _ in range(STEPS):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    continual(model).end_task()
    assert losses[-1] < losses[0] - 0.1, losses
    for name, weight in backbone.model.state_dict().items():
        if name in packed:
            assert torch.equal(weight, packed[name]), f"{name} stays frozen"
    trained = answers(model, tokenizer)
    assert trained != untrained
    with pytest.raises(
        NotImplementedError, match=r"cannot be merged|round the update away|no weight to merge it into"
    ):
        model.merge_and_unload()
    assert answers(model, tokenizer) == trained
    model.save_pretrained(place / "adapter")

    fresh = load_backbone(str(place / "backbone"), quantisation="4-bit", dtype="float32")
    loaded = PeftModel.from_pretrained(fresh.model, place / "adapter")
    assert loaded.get_base_model().is_loaded_in_4bit
    assert answers(loaded, fresh.tokenizer) == trained
    if method == "HIMALAYA in the weights":  # the map from atoms to factors is that of the whole modules
        whole = load_backbone(str(place / "backbone"), dtype="float32").model
        whole = PeftModel.from_pretrained(whole, place / "adapter")
        entries = {one.base_model.himalaya_shared["default"].entries for one in (loaded, whole)}
        assert len(entries) == 1
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)


# These reach the weights as LILAC does, or the outputs as HIMALAYA does: `make test-docs` runs them.
ALIKE = ("COLTAS", "GLODIS", "LOREFT", "O_LORA")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in OPTIONS]
)
def test_train_save_load_generate(
    method: str, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train_save_load, args=(tmp_path, method))
    process.start()
    process.join()
    assert process.exitcode == 0
