"""The vectors that the operator makes in ONNX Runtime are those that the adapter makes in PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.deploy.bundle.runner.graph import open_session
from himalaya_adapter.deploy.onnx.parity import compare
from himalaya_adapter.deploy.onnx.update import ExportedUpdate, make_tables, vectors_cases, vectors_graph
from himalaya_adapter.deploy.onnx.writing import finish, write_function_free, write_model
from himalaya_adapter.methods.himalaya import HimalayaAdapter
from himalaya_adapter.methods.himalaya.update import unscaled

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "odd-width": {"width": 56, "core_atoms": 7, "norm_bound": 1.0, "atoms_per_task": 3, "quantisation_bits": 8},
    "one-layer": {"layers": 1, "active_atoms": 1},
    "evictions": {"elastic_atoms": 24, "evict": True, "similarity_threshold_tau": 0.5},
}


def learnt(width: int = 64, tasks: int = 4, **config: Any) -> HimalayaAdapter:
    adapter = HimalayaAdapter(HimalayaConfig(**{"layers": 5} | config), width).eval()
    generator = torch.Generator().manual_seed(0)
    for number in range(tasks):
        adapter.start_task(f"task {number}")
        atoms = normalize(torch.randn(adapter.atoms.shape, generator=generator), dim=1)
        adapter.atoms.data.copy_(unscaled(0.9 * atoms))
        if adapter.fisher is not None:
            adapter.fisher.observe(torch.randn(adapter.atoms.shape, generator=generator))
        adapter.end_task()
    return adapter


@pytest.mark.parametrize("form", FORMS)
def test_parity(form: str, tmp_path: Path) -> None:
    adapter = learnt(**FORMS[form])
    tasks = adapter.tasks.known()[::-1]
    update = ExportedUpdate(adapter, tasks)
    assert (update.numbers.shape[2] > 1) == (form == "evictions"), "more than one term where an atom was evicted"
    path = tmp_path / "adapter.onnx"
    write_model(finish(vectors_graph(update, 18), {"tasks": tasks}), path)
    for file in (path, write_function_free(path)):
        found = compare(open_session(file, threads=1), vectors_cases(adapter, tasks))
        assert found.keys() == {"write", "read"}
        assert all(output["largest"] > 0.1 and output["max_abs"] < 1e-6 for output in found.values())


def test_only_what_the_tasks_use_is_in_the_graph() -> None:
    adapter = learnt()
    all_tasks, one = make_tables(adapter, adapter.tasks.known()), make_tables(adapter, ["task 2"])
    assert len(all_tasks["codes"]) == 24 + 4 * 24
    assert len(one["codes"]) == 24 + 24
    assert one["codes"].dtype == torch.uint8
    assert one["coefficients"].dtype == torch.int8
    torch.testing.assert_close(one["numbers"][0, :, 0], 24 + torch.arange(24))


def test_a_task_without_atoms_changes_nothing(tmp_path: Path) -> None:
    adapter = learnt(tasks=0)
    adapter.start_task("nothing")
    adapter.end_task()
    update = ExportedUpdate(adapter, ["nothing"])
    write_model(finish(vectors_graph(update, 18), {}), tmp_path / "adapter.onnx")
    (read,) = open_session(tmp_path / "adapter.onnx", threads=1).run(["read"], {"task": torch.zeros(1).long().numpy()})
    assert (read == 0).all()
