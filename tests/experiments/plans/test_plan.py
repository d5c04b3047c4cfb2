"""A plan that cannot be read is told in one line, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments.plans import read_plan
from himalaya_adapter.experiments.plans.plan import REQUIRED_DESIGN

D = "experimental_design"
RUN = {"run_id": "a", "method": "proposed", "model": "SmolLM2-135M"}
Write = Callable[..., str]


@pytest.mark.parametrize("field", REQUIRED_DESIGN)
def test_a_missing_field_is_named(field: str, plan_file: Write) -> None:
    file = plan_file({f"{D}/{field}": None})
    with pytest.raises(HimalayaError) as caught:
        read_plan(file)
    assert str(caught.value) == f"plan {file}: experimental_design has no '{field}'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({D: None}, "no 'experimental_design'; expected keys with values (experiment_summary"),
        ({D: "x"}, 'experimental_design is "x"; expected keys with values'),
        ({f"{D}/models": []}, "unknown key in experimental_design 'models'; did you mean 'models_to_use'"),
        ({"runs": []}, "unknown key in the plan 'runs'"),
        ({"hypothesis": {"metric": "x"}}, "unknown key in hypothesis 'metric'; did you mean 'primary_metric'"),
        ({"hypothesis": {"primary_metric": 3}}, "hypothesis.primary_metric is 3; expected non-empty text"),
        ({f"{D}/models_to_use": "SmolLM2-135M"}, 'models_to_use is "SmolLM2-135M"; expected a list of text with at'),
        ({f"{D}/models_to_use": []}, "models_to_use is []; expected a list of text with at least one entry"),
        ({f"{D}/models_to_use": [3]}, "experimental_design.models_to_use[0] is 3; expected non-empty text"),
        ({f"{D}/comparative_methods": {}}, "comparative_methods is {}; expected a list of text"),
        ({f"{D}/proposed_method": " "}, 'proposed_method is " "; expected non-empty text'),
        ({f"{D}/hyperparameters_to_search": ["lr"]}, 'hyperparameters_to_search is ["lr"]; expected keys with values'),
        ({f"{D}/settings": {3: 4}}, "settings has the name 3; expected text"),
        ({f"{D}/external_resources": {"hugging_face": {"models": ["x"]}}}, "hugging_face.models[0] is"),
        ({f"{D}/external_resources": {"hugging_face": {"models": [{}]}}}, "hugging_face.models[0] has no 'id'"),
        ({f"{D}/external_resources": {"hugging_face": {"models": "x"}}}, "expected a list of models"),
        ({"experiment_runs": []}, "experiment_runs is []; expected a list of runs (run_id, method, model"),
        ({"experiment_runs": ["a"]}, 'experiment_runs[0] is "a"; expected keys with values'),
        ({"experiment_runs": [RUN, {"run_id": "b", "model": "x"}]}, "experiment_runs[1] has no 'method'"),
        ({"experiment_runs": [RUN | {"seed": 1}]}, "unknown key in experiment_runs[0] 'seed'"),
        ({"experiment_runs": [RUN | {"run_id": 3}]}, "experiment_runs[0].run_id is 3; expected non-empty text"),
        ({"experiment_runs": [RUN, RUN]}, "experiment_runs[0] and experiment_runs[1] have the same run_id 'a'"),
        ({"experiment_runs": [RUN, RUN | {"run_id": "A"}]}, "have the same run_id 'a'; a run_id names one run"),
        ({"environment": "A100"}, 'environment is "A100"; expected keys with values (gpu, vram, ram)'),
    ],
)
def test_a_field_of_the_wrong_type_is_named(changes: dict[str, Any], message: str, plan_file: Write) -> None:
    file = plan_file(changes)
    with pytest.raises(HimalayaError) as caught:
        read_plan(file)
    assert str(caught.value).startswith(f"plan {file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.yaml", b"a: [", "while parsing"),
        ("plan.yaml", b"method: a\nmethod: b\n", "key 'method' stands twice"),
        ("plan.yaml", b"a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("plan.yaml", b"\xff\xfe\x00", "decode"),
        ("plan.yaml", b"", "the plan is null; expected keys with values"),
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
    assert captured.err.startswith(f"himalaya: plan {file}: ")
    assert len(captured.err.splitlines()) == 1
    assert not folder.exists()
