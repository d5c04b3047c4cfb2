"""The command line: what a user can get wrong ends in one line and status 2, and nothing computed is lost."""

import errno
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from forked_programs import run_forked
from tiny_runs import run_words, write_stream

from himalaya_adapter.cli import main
from himalaya_adapter.errors import told


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    """A run of HIMALAYA that would finish in a second or two, without its ``results_dir=``."""
    return run_words(place, "HIMALAYA", max_updates_per_task=2)


@pytest.fixture(scope="module")
def finished(place: Path, words: list[str]) -> Path:
    """The folder of a finished run; tests leave it as it is."""
    assert main([*words, f"results_dir={place / 'out'}"]) == 0
    return place / "out" / "himalaya"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a wrong command prints, without its prefix."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("himalaya: ")]
    assert len(lines) == 1, captured.err
    assert captured.err.endswith(f"{lines[0]}\n"), "the message is the last that is printed"
    assert "Traceback" not in captured.err
    return lines[0].removeprefix("himalaya: ")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.adapter.type=HIMALYA", "unknown method 'himalya'; did you mean 'himalaya'"),
        ("model.adapter.options.core_atom=3", "did you mean 'core_atoms'"),
        ("model.adapter.options.core_atoms=many", "option core_atoms of method HIMALAYA is 'many'; expected a whole"),
        ("model.adapter.options.core_atoms=0", "core_atoms=0 must be at least 1"),
        ("model.adapter.options.placement=big", "placement='big' is not one of residual_stream, weights"),
        ("model.adapter.options.evict=3", "option evict of method HIMALAYA is 3; expected true or false"),
        ("results_dir=", "key 'results_dir' of the command line: found \"\", expected text"),
        ("model.adapter.options.target_modules=[nothing]", "HIMALAYA does not fit LlamaForCausalLM"),
        ("model.adapter.options.target_modules='('", "HIMALAYA does not fit LlamaForCausalLM: missing )"),
        ("model.adapter.total_parameter_budget_mb=0.001", "the adapter takes 0.112 MB ("),
        ("dataset.num_tasks=4", "stream tiny has 3 tasks; dataset.num_tasks=3 or null runs it"),
        ("dataset.languages=[de]", "the tasks of stream tiny are in [en]; dataset.languages=[en] or null runs it"),
        ("dataset.languages=[en,de,multi]", "dataset.languages=[de, en, multi]: "),
        (
            "model.adapter.core_dictionary.num_atoms=4",
            "and model.adapter.options.core_atoms of run",
        ),
        ("model.kd_tree.fanout=3", "fanout=3 is not one of 4, 8, 16 (the run sets it as model.kd_tree.fanout)"),
        ("model.backbone.name=smollm2-135", "did you mean 'smollm2-135m'"),
        ("dataset.name=demo_stream_5", "unknown stream 'demo_stream_5'; did you mean 'demo_stream_6'"),
        ("dataset.name=none.yaml", "cannot read none.yaml: No such file"),
        ("training.learning_rate=-1", "expected a number above 0"),
        ("training.batch_size=0", "expected a whole number of at least 1"),
        ("trainig.batch_size=4", "did you mean 'training.batch_size'"),
        ("run_id=../outside", "is not the name of a folder"),
    ],
)
def test_a_wrong_run_writes_nothing(
    word: str, message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in one_line([*words, f"results_dir={tmp_path / 'out'}", word], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_not_linear(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model.adapter.options.placement=weights", "model.adapter.options.target_modules=[mlp]"]
    line = one_line([*words, f"results_dir={tmp_path}", *options], capsys)
    assert "'model.layers.0.mlp' is a LlamaMLP, not a linear module" in line
    assert list(tmp_path.iterdir()) == []


def test_the_corrected_command_starts_where_the_wrong_one_did_not(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line([*words, f"results_dir={tmp_path}", "model.adapter.options.target_modules=[nothing]"], capsys)
    assert main([*words, f"results_dir={tmp_path}"]) == 0


def test_a_finished_run_is_left_as_it_is(finished: Path, words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    before = snapshot(finished)
    assert main([*words, f"results_dir={finished.parent}"]) == 0
    assert "is finished; nothing to do (overwrite=true starts it anew)" in caplog.text
    assert snapshot(finished) == before


def test_the_folder_of_another_config_is_refused(
    finished: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    line = one_line([*words, f"results_dir={finished.parent}", "training.learning_rate=0.5"], capsys)
    assert "was begun with training.learning_rate=0.01, this run has 0.5" in line
    assert snapshot(finished) == before


def test_overwrite_does_not_delete_before_the_run_can_start(
    finished: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished)
    for wrong in ("model.adapter.options.target_modules=[nothing]", "dataset.name=none.yaml", "training.seed=-1"):
        one_line([*words, f"results_dir={finished.parent}", "overwrite=true", wrong], capsys)
    assert snapshot(finished) == before


def test_overwrite_starts_anew(words: list[str], tmp_path: Path) -> None:
    assert main([*words, f"results_dir={tmp_path}"]) == 0
    (tmp_path / "himalaya" / "old.txt").write_text("of the first run", encoding="utf-8")
    assert main([*words, f"results_dir={tmp_path}", "overwrite=true", "training.learning_rate=0.5"]) == 0
    written = yaml.safe_load((tmp_path / "himalaya" / "config.yaml").read_text(encoding="utf-8"))
    assert written["training"]["learning_rate"] == 0.5
    assert not (tmp_path / "himalaya" / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scores", "himalaya"]


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_a_folder_that_is_no_run_is_never_touched(
    overwrite: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "himalaya" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work", encoding="utf-8")
    line = one_line([*words, f"results_dir={tmp_path}", f"overwrite={overwrite}"], capsys)
    assert "is no run's folder (no config.yaml of '" in line
    assert precious.read_text(encoding="utf-8") == "years of work"


def test_changed_data_do_not_mix_with_older_scores(
    words: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stream(tmp_path)
    arguments = [*words, f"results_dir={tmp_path / 'out'}", f"dataset.name={tmp_path / 'stream.yaml'}"]
    assert main(arguments) == 0
    (tmp_path / "out" / "himalaya" / "metrics.json").unlink()  # as if it had been killed at its end
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8").replace("sofa", "chair"), encoding="utf-8")
    assert "was begun with data_hashes." in one_line(arguments, capsys)


def test_a_results_dir_that_is_a_file(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    assert f"{tmp_path / 'out'}: File exists" in one_line([*words, f"results_dir={tmp_path / 'out'}"], capsys)


def test_a_damaged_config_is_one_clear_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "himalaya").mkdir()
    (tmp_path / "himalaya" / "config.yaml").write_text("run_id: [", encoding="utf-8")
    assert f"cannot read {tmp_path / 'himalaya' / 'config.yaml'}: while parsing" in one_line(
        [*words, f"results_dir={tmp_path}"], capsys
    )


SOURCE = "run=proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"


@pytest.mark.slow  # tests/test_budget.py counts tiny models
@pytest.mark.parametrize(
    ("run", "own"),
    [
        (SOURCE, ("router.head", "1,506,404", "router parameters", "45,000", "active atoms of a token")),
        ("run=demo-himalaya", ("tasks.numbers", "446,392", "active atoms of a layer", "tasks that fit")),
    ],
    ids=[SOURCE, "run=demo-himalaya"],
)
def test_budget_prints_what_is_counted_and_fetches_no_weights(
    run: str,
    own: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path))
    assert main(["budget", run]) == 0
    shown = capsys.readouterr().out
    assert all(what in shown for what in ("dictionary.elastic", "header", "total", "2.5 MB"))
    assert all(what in shown for what in ("trainable parameters", "matrix products", *own))
    assert list(tmp_path.iterdir()) == []


def test_budget_ends_in_one_line_where_it_is_exceeded(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(["budget", *words[1:], "model.adapter.total_parameter_budget_mb=0.001"], capsys)
    assert line.startswith("the adapter takes 0.112 MB (")
    assert "unknown run 'demo-hima'" in one_line(["budget", "run=demo-hima"], capsys)
    assert "expected a number above 0" in one_line(["budget", "run=demo-lora", "training.learning_rate=0"], capsys)


def test_a_run_over_its_budget_stops_before_weights_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path / "cache"))
    over = "model.adapter.total_parameter_budget_mb=0.2"
    for run in (SOURCE, "run=demo-himalaya", "run=demo-lora"):
        assert "the adapter takes " in one_line(["run", run, over, f"results_dir={tmp_path / 'out'}"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_keys_that_are_another_machines_are_named(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The device of the latency is in tests/deploy/test_latency.py."""
    keys = ["hardware.gpu_type=A100-80GB", "hardware.max_gpu_mem_gb=100000"]
    keys += ["optuna.search_space.learning_rate={type: uniform, low: 0.1, high: 0.2}"]
    keys += ["dataset.num_tasks=3", "dataset.languages=[en]", "dataset.streaming=true"]
    assert main([*words, f"results_dir={tmp_path}", *keys]) == 0
    assert "planned for A100-80GB with 100000" in caplog.text
    assert "`himalaya search` varies them" in caplog.text


def test_a_prompt_that_is_too_long_is_counted_and_a_target_that_is_too_long_follows_the_policy(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = write_stream(tmp_path)
    content = yaml.safe_load(stream.read_text(encoding="utf-8"))
    lengthy, rest = dict(content["tasks"][1]), [content["tasks"][0], content["tasks"][2]]
    lengthy.update(target="{sentence}", template="Sofa {number}? {sentence}\nColour:", on_bad_item="skip")
    stream.write_text(yaml.safe_dump({"name": "tiny", "tasks": [lengthy, *rest]}), encoding="utf-8")
    arguments = [*words, f"dataset.name={stream}", f"results_dir={tmp_path / 'out'}", "dataset.max_seq_length=26"]
    assert main(arguments) == 0
    events = (tmp_path / "out" / "himalaya" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    first, *others = [event for event in map(json.loads, events) if event["event"] == "task_end"]
    assert 0 < first["truncated_prompts"]["train"] <= 24
    assert 0 < first["truncated_prompts"]["test"] <= 8
    assert [other["truncated_prompts"] for other in others] == [{"train": 0, "test": 0}] * 2
    assert "prompts of more than dataset.max_seq_length=26 tokens lose their beginning" in caplog.text
    assert "items skipped, target too long" in caplog.text

    lengthy["on_bad_item"] = "stop"
    stream.write_text(yaml.safe_dump({"name": "tiny", "tasks": [lengthy, *rest]}), encoding="utf-8")
    line = one_line([*arguments[:-2], f"results_dir={tmp_path / 'other'}", "dataset.max_seq_length=26"], capsys)
    assert line.startswith("task 'colour_word': the target of source item")


def test_a_context_that_is_too_short(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line([*words, f"results_dir={tmp_path}", "dataset.max_seq_length=513"], capsys)
    assert "dataset.max_seq_length=513: " in line
    assert "reads at most 512 tokens" in line
    assert list(tmp_path.iterdir()) == []


def test_more_updates_than_the_epochs_hold_repeat_nothing(words: list[str], tmp_path: Path) -> None:
    more = ["training.max_updates_per_task=50000", "training.task_epochs=2", "training.grad_accum_steps=4"]
    assert main([*words, f"results_dir={tmp_path}", *more]) == 0
    events = (tmp_path / "himalaya" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    # 24 items are 6 batches of 4, so an epoch is one step of 4 batches and one of the 2 that are left.
    assert [event["steps"] for event in map(json.loads, events) if event["event"] == "task_end"] == [4, 4, 4]


def test_generate_names_the_nearest_task(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(["generate", str(finished), "Is 2 even?", "--task", "parrity"], capsys)
    assert "unknown task 'parrity'; did you mean 'parity'" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "text", "--task", "parity"], "nowhere is not a finished run"),
        (["RUN", "  ", "--task", "parity"], "the prompt is empty"),
        (["RUN", "text", "--task", "parity", "--max-new-tokens", "0"], "expected a whole number of at least 1"),
    ],
)
def test_generate_refuses(
    arguments: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in one_line(["generate", *[str(finished) if one == "RUN" else one for one in arguments]], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "no runs to compare: x holds no finished run"),
        (["RESULTS", "himalya"], "did you mean 'himalaya'"),
        (["RESULTS", "../x/run"], "run '../x/run' is not the name of a folder"),
    ],
)
def test_compare_refuses(
    arguments: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = [one.replace("RESULTS", str(finished.parent)) for one in arguments]
    assert message in one_line(["compare", *replaced], capsys)


def test_data_shows_a_users_own_stream(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(place / "stream.yaml"), "colour_word"]) == 0
    shown = capsys.readouterr().out
    assert "kind extraction, language en, metric token_f1" in shown
    assert "train: 24 items" in shown
    assert "did you mean 'echo'" in one_line(["data", "show", str(place / "stream.yaml"), "eco"], capsys)
    wrong = place / "wrong.yaml"
    wrong.write_text((place / "stream.yaml").read_text(encoding="utf-8").replace("token_f1", "tokenf1"))
    assert "unknown metric 'tokenf1'; did you mean 'token_f1'" in one_line(
        ["data", "show", str(wrong), "colour_word"], capsys
    )
    assert "unknown stream 'demo_strem_6'; did you mean" in one_line(["data", "list", "demo_strem_6"], capsys)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "himalaya_adapter.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_help_in_a_shell() -> None:
    shown = shell("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("run", "budget", "compare", "data", "configs", "generate"))


def test_a_mistake_in_a_shell_is_one_line_and_status_2() -> None:
    failed = shell("run", "run=demo-himlaya")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.splitlines()[-1].startswith("himalaya: unknown run 'demo-himlaya'; did you mean")
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("arguments", [["rum"], [], ["run"], ["generate", "folder"]])
def test_an_incomplete_command_shows_its_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Usage: himalaya" in capsys.readouterr().err


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"himalaya-adapter {metadata.version('himalaya-adapter')}\n"


MISSING = {
    "onnxruntime": ["latency"],
    "onnx": ["export", "RUN", "--format", "bundle", "--output", "out"],
    "jinja2": ["compare", "out"],
}


@pytest.mark.slow
def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    """In processes of their own, in which nothing of it has been imported."""
    start = "import sys; from himalaya_adapter.cli import main; sys.modules[{!r}] = None; sys.exit(main({}))"
    programs = [start.format(package, command) for package, command in MISSING.items()]
    ended = run_forked(tmp_path, "import peft", programs)
    for package, found in zip(MISSING, ended, strict=True):
        assert found.returncode == 2, found.stderr
        extra = "lab" if package == "jinja2" else "deploy"
        line = f"himalaya: {package} is missing: pip install 'himalaya-adapter[{extra}]'"
        assert found.stderr.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("runs", "demo-lora: LoRA r=8 on demo_stream_6, smollm2-135m"),
        ("methods", "HIMALAYA_STRICT"),
        ("backbones", "smollm2-135m"),
        ("backbones", "gemma3-270m (under terms of use: https://ai.google.dev/gemma/terms)"),
        ("streams", "demo_stream_6: Six short tasks"),
        ("keys", "training.batch_size (a whole number of at least 1; default 8): Items per forward pass."),
    ],
)
def test_what_there_is_can_be_listed(what: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    assert any(shown.startswith(line) for shown in capsys.readouterr().out.splitlines())


def test_what_the_machine_does_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = f"results_dir={tmp_path / ('x' * 300)}"
    line = one_line([*words, longest], capsys)
    assert "File name too long" in line
    assert "choose a shorter name" in line

    (tmp_path / "loop").symlink_to("loop")
    for command in (["report"], ["tasks"], ["compare"]):
        assert "loop" in one_line([*command, str(tmp_path / "loop")], capsys)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    line = one_line([*words, f"results_dir={tmp_path / 'out'}"], capsys)
    assert "No locks available; choose a results_dir on a disk that has locks" in line
    assert line.endswith("the same command goes on from here")


def test_a_full_disk_is_one_line_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """/dev/full refuses every write as a full disk does."""
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "w", encoding="utf-8") as file:
        file.write("x" * 100_000)
    assert told(caught.value) == "No space left on device; free some space, or choose another disk"


def test_a_mistake_of_the_program_stays_a_traceback_with_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    assert told(RuntimeError("a bug")) is None
    monkeypatch.setattr("himalaya_adapter.streams.catalogue.read_definition", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["data", "list", "demo_stream_6"])
    assert capsys.readouterr().err.startswith(f"himalaya-adapter {metadata.version('himalaya-adapter')}: a mistake of")


@pytest.mark.parametrize(
    ("command", "said"),
    [("run", "himalaya: interrupted; the same command goes on from here\n"), ("budget", "himalaya: interrupted\n")],
)
def test_an_interruption_says_whether_the_command_goes_on(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("himalaya_adapter.experiments.compose_run", interrupted)
    assert main([command, "run=demo-lora"]) == 130
    assert capsys.readouterr().err == said


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = one_line([*words, f"results_dir={tmp_path}", "training.report_to=wandb"], capsys)
    assert line == "training.report_to=wandb needs the package wandb: pip install wandb"
    assert list(tmp_path.iterdir()) == []
