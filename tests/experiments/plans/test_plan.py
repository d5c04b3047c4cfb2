"""A plan that cannot be read is told in one line, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.plans import read_plan

D = "experimental_design"
RUN = {"run_id": "a", "method": "proposed", "model": "SmolLM2-135M"}
Write = Callable[..., str]


@pytest.mark.parametrize("field", ["experiment_summary", "proposed_method", "models_to_use", "datasets_to_use"])
def test_a_missing_field_is_named(field: str, plan_file: Write) -> None:
    file = plan_file({f"{D}/{field}": None})
    with pytest.raises(HimalayaError) as caught:
        read_plan(file)
    assert f"key 'experimental_design.{field}' of plan {file} is missing; expected" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({D: None}, "key 'experimental_design' of plan"),
        ({D: "x"}, 'found "x", expected keys with values'),
        ({f"{D}/models": []}, "'experimental_design.models'; did you mean 'experimental_design.models_to_use'"),
        ({"runs": []}, "'runs'; did you mean"),
        ({f"{D}/models_to_use": "SmolLM2-135M"}, 'found "SmolLM2-135M", expected a list'),
        ({f"{D}/models_to_use": []}, "found [], expected a list"),
        ({f"{D}/comparative_methods": {}}, "found {}, expected a list"),
        ({f"{D}/proposed_method": " "}, 'found " ", expected non-empty text'),
        ({f"{D}/hyperparameters_to_search": ["lr"]}, 'found ["lr"], expected keys with values'),
        ({"experiment_runs": []}, "found [], expected keys with values"),
        ({"experiment_runs": ["a"]}, "'experiment_runs.0' of plan"),
        ({"experiment_runs": [RUN, {"run_id": "b", "model": "x"}]}, "experiment_runs.1.method"),
        ({"experiment_runs": [RUN | {"seed": 1}]}, "'experiment_runs.0.seed'"),
        ({"environment": "A100"}, 'found "A100", expected keys with values, or null'),
    ],
)
def test_a_field_of_the_wrong_type_is_named(changes: dict[str, Any], message: str, plan_file: Write) -> None:
    file = plan_file(changes)
    with pytest.raises(HimalayaError) as caught:
        read_plan(file)
    assert f"plan {file}" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.yaml", b"a: [", "while parsing"),
        ("plan.yaml", b"method: a\nmethod: b\n", "key 'method' stands twice"),
        ("plan.yaml", b"a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("plan.yaml", b"\xff\xfe\x00", "decode"),
        ("plan.yaml", b"", "found null, expected keys with values"),
        ("plan.yaml", b"[" * 20000, "cannot read"),
        ("plan.json", b"{", "Expecting"),
        ("plan.json", b'{"method": "a", "method": "b"}', "key 'method' stands twice"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HimalayaError) as caught:
        read_plan(str(tmp_path / name))
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(HimalayaError, match=f"cannot read {path}: "):
            read_plan(str(path))


@pytest.mark.parametrize("changes", [{D: None}, {f"{D}/comparative_methods": ["LoRAX"]}])
def test_a_wrong_plan_writes_nothing(
    changes: dict[str, Any], plan_file: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = plan_file(changes), tmp_path / "out"
    assert main(["configs", "generate", file, "--output", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"plan {file}" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not folder.exists()
