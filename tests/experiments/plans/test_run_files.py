"""Validating files, one line for each; writing configs whole or not at all, never over what is there."""

import json
import os
from pathlib import Path

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.documents import parse_document
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run, run_names
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.plans import RunText, write_configs
from himalaya_adapter.experiments.plans.run_files import canonical, run_of_text

DEMO = (CONF / "run" / "demo-lora.yaml").read_text(encoding="utf-8").partition("optuna:")[0]
CONFIG = RunText("lora", DEMO)


def document(*configs: RunText) -> str:
    return json.dumps({"run_configs": [{"run_id": one.run_id, "run_config_yaml": one.text} for one in configs]})


def lines_of(paths: list[Path], capsys: pytest.CaptureFixture[str], status: int) -> list[str]:
    capsys.readouterr()
    assert main(["configs", "validate", *map(str, paths)]) == status
    return capsys.readouterr().out.splitlines()


def test_all_packaged_runs_and_a_document_of_them_are_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [CONF / "run" / f"{name}.yaml" for name in run_names()]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    named = [RunText(yaml.safe_load(text)["run_id"], text) for text in texts]
    (tmp_path / "all.json").write_text(document(*named), encoding="utf-8")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(json.loads(document(*named))), encoding="utf-8")
    paths += [tmp_path / "all.json", tmp_path / "all.yaml"]
    assert lines_of(paths, capsys, 0) == [f"{path}: ok" for path in paths]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("batch_size: 4", "batch_size: many", 'found "many", expected a whole number'),
        ("batch_size: 4", "batch_size: 0", "found 0, expected a whole number of at least 1"),
        ("batch_size: 4", "batchsize: 4", "'training.batchsize'; did you mean 'training.batch_size'"),
        ("learning_rate: 1.0e-3", "learning_rate: 1e-3x", 'found "1e-3x", expected a'),
        ("method: comparative\n", "", "is missing; expected one of proposed, comparative"),
        ("method: comparative", "method: rival", "'rival'; did you mean"),
        ("run_id: lora", "run_id: a/b", "run_id 'a/b' is not the name of a folder: it holds a slash"),
        ("run_id: lora", "run_id: [", "while parsing"),
        ("run_id: lora", "run_id: lora\nrun_id: lora", "key 'run_id' stands twice"),
        (DEMO, "- a\n", 'found ["a"], expected keys with values'),
        (DEMO, "", "found null, expected keys with values"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(
    old: str, new: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(DEMO, encoding="utf-8")
    assert old in DEMO
    bad.write_text(DEMO.replace(old, new, 1), encoding="utf-8")
    first, second = lines_of([bad, good], capsys, 2)
    assert first.startswith(f"{bad}: ")
    assert line in first
    assert second == f"{good}: ok"
    text = document(CONFIG, RunText("b", bad.read_text(encoding="utf-8")))
    (tmp_path / "both.json").write_text(text, encoding="utf-8")
    (only,) = lines_of([tmp_path / "both.json"], capsys, 2)
    assert only.startswith(f"{tmp_path / 'both.json'}: ")
    assert line in only


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "cannot read"),
        ("[]", "the run config: found [], expected keys with values"),
        ('{"run_configs": []}', "no list 'run_configs' of run configs; expected {"),
        ('{"run_configs": {"a": 1}}', "no list 'run_configs'"),
        ('{"run_configs": [{"run_id": "a"}]}', "run_configs[0] has not the texts 'run_id' and 'run_config_yaml'"),
        ('{"run_configs": ["a"]}', "run_configs[0] has not the texts"),
        (document(CONFIG, CONFIG), "run_configs has 2 runs of the run_id 'lora'"),
        (document(RunText("a", DEMO)), "run_id=lora: expected a, under which it is listed"),
        (document(RunText("a", "[")), "cannot read run 'a': while parsing"),
    ],
)
def test_a_document_that_is_none(content: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "doc.json"
    path.write_text(content, encoding="utf-8")
    (only,) = lines_of([path], capsys, 2)
    assert only.startswith(f"{path}: {line}")


def test_no_file_a_folder_and_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    paths = [tmp_path / "none.yaml", tmp_path, tmp_path / "bytes.yaml"]
    lines = lines_of(paths, capsys, 2)
    assert [line.startswith(f"{path}: ") for path, line in zip(paths, lines, strict=True)] == [True] * 3


def test_numbers_are_written_as_numbers() -> None:
    """YAML 1.1 reads 2e-4 as text; what is written is a number to it."""
    text = (
        DEMO.replace("1.0e-3", "2e-4") + "optuna: {search_space: {learning_rate: {type: uniform, low: 1e-5, high: 1}}}"
    )
    config = RunText("lora", text)
    written = canonical("lora", parse_document(text, "lora"))
    content = yaml.safe_load(written.text)
    assert content["training"]["learning_rate"] == 2e-4
    assert content["optuna"]["search_space"]["learning_rate"] == {"type": "uniform", "low": 1e-5, "high": 1.0}
    assert run_of_text(written) == run_of_text(config)
    assert canonical("lora", content) == written


def test_the_written_form_keeps_names_with_dots_and_all_keys_that_were_given() -> None:
    space = "optuna: {search_space: {training.batch_size: {type: categorical, choices: [2, null, auto]}}}"
    text = DEMO + space + "\nhardware: {gpu_type: null}\n"
    written = canonical("lora", parse_document(text, "lora"))
    assert run_of_text(written) == run_of_text(RunText("lora", text))
    assert yaml.safe_load(written.text)["hardware"] == {"gpu_type": None}
    assert "save_steps" in written.text
    assert "max_grad_norm" not in written.text


def test_a_config_that_reads_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    text = DEMO.replace("LoRA r=8", "${oc.env:SECRET}")
    with pytest.raises(HimalayaError, match="asks for a value from elsewhere") as caught:
        run_of_text(RunText("lora", text))
    assert "hush" not in str(caught.value)


def test_other_content_is_kept_unless_told(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    other = RunText("other", DEMO.replace("run_id: lora", "run_id: other"))
    paths = write_configs([CONFIG, other], folder, overwrite=False)
    assert sorted(path.name for path in folder.iterdir()) == ["lora.yaml", "other.yaml", "run_configs.json"]
    times = {path: path.stat().st_mtime_ns for path in paths}
    assert write_configs([CONFIG, other], folder, overwrite=False) == paths
    assert {path: path.stat().st_mtime_ns for path in paths} == times, "the same content is not written again"

    paths[0].write_text("mine", encoding="utf-8")
    (folder / "other.yaml").unlink()
    with pytest.raises(HimalayaError, match=r"lora\.yaml exists with other content; --overwrite replaces it"):
        write_configs([CONFIG, other], folder, overwrite=False)
    assert paths[0].read_text(encoding="utf-8") == "mine"
    assert not (folder / "other.yaml").exists(), "nothing is written beside it either"
    write_configs([CONFIG, other], folder, overwrite=True)
    assert paths[0].read_text(encoding="utf-8") == DEMO
    assert compose_run([f"run={folder / 'other.yaml'}"]).run.run_id == "other"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        write_configs([CONFIG], tmp_path / "file", overwrite=False)
    (tmp_path / "lora.yaml").mkdir()
    with pytest.raises(HimalayaError, match="exists with other content"):
        write_configs([CONFIG], tmp_path, overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["file", "lora.yaml"]
