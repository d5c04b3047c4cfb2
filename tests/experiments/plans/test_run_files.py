"""Validating files, one line for each; writing configs whole or not at all, never over what is there."""

import json
import os
from pathlib import Path

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run, run_names
from himalaya_adapter.experiments.composition import CONF
from himalaya_adapter.experiments.plans import write_configs
from himalaya_adapter.experiments.plans.run_files import Entry

DEMO = (CONF / "run" / "demo-lora.yaml").read_text(encoding="utf-8").partition("optuna:")[0]
CONFIG = Entry("lora", DEMO)


def document(*configs: Entry) -> str:
    return json.dumps(
        {"run_configs": [{"run_id": one.run_id, "run_config_yaml": one.run_config_yaml} for one in configs]}
    )


def lines_of(paths: list[Path], capsys: pytest.CaptureFixture[str], status: int) -> list[str]:
    capsys.readouterr()
    assert main(["configs", "validate", *map(str, paths)]) == status
    return capsys.readouterr().out.splitlines()


def test_all_packaged_runs_and_a_document_of_them_are_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [CONF / "run" / f"{name}.yaml" for name in run_names()]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    named = [Entry(yaml.safe_load(text)["run_id"], text) for text in texts]
    (tmp_path / "all.json").write_text(document(*named), encoding="utf-8")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(json.loads(document(*named))), encoding="utf-8")
    paths += [tmp_path / "all.json", tmp_path / "all.yaml"]
    assert lines_of(paths, capsys, 0) == [f"{path}: ok" for path in paths]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("type: LORA", "type: LOAR", "unknown method 'loar'; did you mean 'lora'"),
        ("  r: 8", "  rank: 8", "unknown option of method LORA 'rank'; did you mean"),
        ("  r: 8", "  inference_mode: true", "unknown option of method LORA 'inference_mode'"),
    ],
)
def test_what_no_method_has_is_refused_as_by_a_run(
    old: str, new: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(DEMO.replace(old, new), encoding="utf-8")
    (only,) = lines_of([path], capsys, 2)
    assert only.startswith(f"{path}: {line}")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("batch_size: 4", "batch_size: many", 'found "many", expected a whole number'),
        ("batch_size: 4", "batch_size: 0", "found 0, expected a whole number of at least 1"),
        ("batch_size: 4", "batchsize: 4", "'training.batchsize'; did you mean 'training.batch_size'"),
        ("learning_rate: 1.0e-3", "learning_rate: 1e-3x", 'found "1e-3x", expected a'),
        ("method: comparative\n", "", "is missing; expected one of proposed, comparative"),
        ("method: comparative", "method: rival", 'found "rival", expected one of'),
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
    text = document(CONFIG, Entry("b", bad.read_text(encoding="utf-8")))
    (tmp_path / "both.json").write_text(text, encoding="utf-8")
    (only,) = lines_of([tmp_path / "both.json"], capsys, 2)
    assert only.startswith(f"{tmp_path / 'both.json'}: ")
    assert line in only


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "cannot read"),
        ("[]", "the run config: found [], expected keys with values"),
        ('{"run_configs": []}', "key 'run_configs' of the document: found [], expected keys with values"),
        ('{"run_configs": {"a": 1}}', "key 'run_configs' of the document: found {\"a\": 1}, expected"),
        (
            '{"run_configs": [{"run_id": "a"}]}',
            "key 'run_configs.0.run_config_yaml' of the document is missing",
        ),
        ('{"run_configs": ["a"]}', "key 'run_configs.0' of the document: found \"a\", expected keys with values"),
        (document(Entry("a", DEMO)), "run_id=lora: expected a, under which it is listed"),
        (document(Entry("a", "[")), "cannot read run 'a': while parsing"),
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


def test_a_config_that_reads_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    text = DEMO.replace("LoRA r=8", "${oc.env:SECRET}")
    with pytest.raises(HimalayaError, match="asks for a value from elsewhere") as caught:
        Entry("lora", text).read()
    assert "hush" not in str(caught.value)


def test_other_content_is_kept_unless_told(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    lora = yaml.safe_load(DEMO)
    contents = [lora, lora | {"run_id": "other"}]
    paths = write_configs(contents, folder, overwrite=False)
    assert sorted(path.name for path in folder.iterdir()) == ["lora.yaml", "other.yaml", "run_configs.json"]
    before = {path: path.read_bytes() for path in paths}
    assert write_configs(contents, folder, overwrite=False) == paths
    assert {path: path.read_bytes() for path in paths} == before

    paths[0].write_text("mine", encoding="utf-8")
    (folder / "other.yaml").unlink()
    with pytest.raises(HimalayaError, match=r"lora\.yaml exists with other content; --overwrite replaces it"):
        write_configs(contents, folder, overwrite=False)
    assert paths[0].read_text(encoding="utf-8") == "mine"
    assert not (folder / "other.yaml").exists(), "nothing is written beside it either"
    write_configs(contents, folder, overwrite=True)
    assert paths[0].read_bytes() == before[paths[0]]
    assert compose_run([f"run={folder / 'other.yaml'}"]).run.run_id == "other"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        write_configs([yaml.safe_load(DEMO)], tmp_path / "file", overwrite=False)
    (tmp_path / "lora.yaml").mkdir()
    with pytest.raises(IsADirectoryError):
        write_configs([yaml.safe_load(DEMO)], tmp_path, overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["file", "lora.yaml"]
