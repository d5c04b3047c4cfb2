"""From the words of a command line to a run config; every mistake is one line that names the nearest right word."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation import metrics
from himalaya_adapter.experiments import compose_run, run_names
from himalaya_adapter.experiments.keys import check_same
from himalaya_adapter.experiments.run_config import Metric
from himalaya_adapter.experiments.validation import check_run

RUN = "run=demo-himalaya"
# Five levels of nine aliases: half a kilobyte that stands for 59,049 texts nine times over.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * 9)}]\n" for level in range(5)
)


@pytest.mark.parametrize("name", run_names())
def test_every_packaged_run_is_valid(name: str) -> None:
    launch = compose_run([f"run={name}"])
    check_run(launch.run)
    assert launch.results_dir == Path("outputs")
    assert not launch.overwrite


def test_overrides_win_over_the_run_and_options_are_merged() -> None:
    words = ["run=demo-lora", "model.adapter.options.r=4", "model.adapter.options.target_modules=[q_proj]"]
    launch = compose_run([*words, "training.seed=3", "results_dir=elsewhere/my results (2)", "overwrite=true"])
    assert launch.run.model.adapter.options == {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]}
    assert launch.run.training.seed == 3
    assert launch.results_dir == Path("elsewhere/my results (2)")
    assert launch.overwrite


def test_another_backbone_takes_the_place_of_the_runs() -> None:
    source = "run=proposed-iter1-Llama-2-7B-HF-4-bit-QLoRA-7-B-parameters"
    run = compose_run([source, "backbone=smollm2-135m"]).run
    assert (run.model.backbone.name, run.model.backbone.quantisation) == ("smollm2-135m", None)
    check_run(run)
    four_bit = compose_run([source, "model.backbone.quantisation=4-bit", "backbone=a folder/(2)"]).run
    assert (four_bit.model.backbone.name, four_bit.model.backbone.quantisation) == ("a folder/(2)", "4-bit")
    assert compose_run([source]).run.dataset.tokenizer == compose_run([source]).run.model.backbone.name


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "2E-4"])
def test_numbers_are_read_as_numbers(text: str, tmp_path: Path) -> None:
    assert compose_run([RUN, f"training.learning_rate={text}"]).run.training.learning_rate == 2e-4
    packaged = Path(__file__).parents[2] / "src/himalaya_adapter/conf/run/demo-himalaya.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(re.sub("learning_rate: .*", f"learning_rate: {text}", packaged.read_text(encoding="utf-8")))
    assert compose_run([f"run={own}"]).run.training.learning_rate == 2e-4


def test_a_trial_is_the_same_run_on_fewer_items() -> None:
    full, trial = compose_run([RUN]).run, compose_run([RUN, "mode=trial"]).run
    assert trial.dataset.max_samples_per_task == trial.dataset.max_test_samples_per_task == 16
    assert full.dataset.max_samples_per_task is None
    assert compose_run([RUN, "mode=trial", "dataset.max_samples_per_task=5"]).run.dataset.max_samples_per_task == 5
    assert trial.training == full.training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "key 'run' of the command line is missing; expected text"),
        (["demo-himalaya"], "'demo-himalaya' is not an override; write KEY=VALUE"),
        ([RUN, "=3"], "'=3' is not an override"),
        (["run=demo-himlaya"], "unknown run 'demo-himlaya'; did you mean 'demo-himalaya'"),
        ([RUN, "mode=trail"], "key 'mode' of the command line: found \"trail\", expected one of full, trial"),
        ([RUN, "overwrite=maybe"], "key 'overwrite' of the command line: found \"maybe\", expected true or false"),
        ([RUN, "training.lerning_rate=1"], "'training.lerning_rate'; did you mean 'training.learning_rate'"),
        ([RUN, "learning_rate=1"], "did you mean 'training.learning_rate'"),
        ([RUN, "model.adapter.optoins.r=4"], "did you mean 'model.adapter.options'"),
        (
            [RUN, "training.batch_size=many"],
            "key 'training.batch_size' of run 'demo-himalaya': found \"many\", expected a whole number",
        ),
        ([RUN, "run_id=1.10"], "key 'run_id' of run 'demo-himalaya': found 1.1, expected text (quote a number)"),
        ([RUN, "run_id=1e3"], "expected text (quote a number)"),
        ([RUN, "training.batch_size=2.5"], "key 'training.batch_size'"),
        ([RUN, "training.learning_rate=null"], "found null, expected a number"),
        (
            [RUN, "training=3"],
            "key 'training' of run 'demo-himalaya': found 3, expected keys with values",
        ),
        ([RUN, "method=null"], "found null, expected one of proposed, comparative"),
        ([RUN, "dataset.languages=en"], 'found "en", expected a list, or null'),
        ([RUN, "training.seed=2020-13-45"], 'found "2020-13-45", expected a whole number'),
        ([RUN, "training.seed=!!int x"], "cannot read training.seed=!!int x"),
        ([RUN, "training.seed=!!bool x"], "cannot read training.seed=!!bool x"),
        ([RUN, "training.seed=!!timestamp x"], "cannot read training.seed=!!timestamp x"),
        ([RUN, "optuna.search_space.learning_rate=3"], "found 3, expected keys with values"),
        ([RUN, "optuna.search_space.learning_rate={type: int, low: x}"], 'found "x", expected a number, or null'),
        ([RUN, "model.adapter.options=3"], "key 'model.adapter.options'"),
        ([RUN, "training.learning_rate=[1"], "cannot read training.learning_rate=[1"),
        ([RUN, "run_id=${oc.env:HOME}"], "run 'demo-himalaya': '${oc.env:HOME}' asks for a value from elsewhere"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        compose_run(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "while parsing"),
        ("- a\n- b\n", "expected a YAML file of keys"),
        ("", "expected a YAML file of keys"),
        ("{}", "key 'run_id' of run"),
        ("run_id: a", "is missing; expected one of proposed, comparative"),
        ("run_id: a\nrun_id: b", "key 'run_id' stands twice"),
        ("run_id: 2020-13-45\n", "key 'method' of run"),
        ("run_id: !!int x", "invalid literal"),
        ("run_id: !!python/object:os.system x", "could not determine a constructor"),
        ("run_id: " + "[" * 500 + "]" * 500, "it is nested too deeply"),
        ("run_id: " + "[" * 60 + "]" * 60, "it is nested too deeply"),
        ("run_id: &a [*a]", "it is nested too deeply"),
        (BOMB, "it stands for more than 200000 values"),
        ("run_id: ${oc.env:HOME}", "asks for a value from elsewhere"),
        ("run_id: ${.method}", "asks for a value from elsewhere"),
        ("1: 2", "unknown key of run"),
        ("training:\nrun_id: a\nmethod: proposed\nmethod_name: a", "key 'model' of run"),
        ("lr: 1", "'lr'"),
    ],
)
def test_an_unusable_run_file_is_one_clear_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(HimalayaError, match=re.escape(str(path))) as caught:
        compose_run([f"run={path}"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "training.learning_rate=-1e-3",
            "key 'training.learning_rate' of run 'demo-himalaya': found -0.001, expected a number above 0",
        ),
        ("training.learning_rate=.nan", "expected a number above 0"),
        ("training.learning_rate=.inf", "expected a number above 0"),
        ("training.batch_size=0", "found 0, expected a whole number of at least 1"),
        ("training.grad_accum_steps=-1", "at least 1"),
        ("training.save_steps=0", "at least 1"),
        ("training.task_epochs=0", "at least 1"),
        ("training.max_updates_per_task=0", "at least 1"),
        ("dataset.max_samples_per_task=0", "at least 1"),
        ("dataset.max_seq_length=0", "at least 1"),
        ("evaluation.eval_batch_size=0", "at least 1"),
        ("training.weight_decay=-1", "at least 0"),
        ("training.warmup_steps=-1", "found -1, expected a number of at least 0 and of at most 1000000"),
        ("training.warmup_steps=1e9", "found 1000000000.0, expected a number of at least 0 and"),
        ("training.warmup_steps=1.5", "expected a share below 1, or a whole number of steps"),
        (
            "model.adapter.options.gain=.inf",
            "model.adapter.options.gain=inf of run 'himalaya': expected a finite number",
        ),
        ("model.adapter.router.temperature_init=.nan", "found NaN, expected a number, or null"),
        ("optuna.search_space=inf", "key 'optuna.search_space' of run 'demo-himalaya': found \"inf\", expected keys"),
        ("optuna.search_space={learning_rate: {type: uniform, low: 0, high: .inf}}", "found Infinity, expected a num"),
        ("training.max_grad_norm=0", "above 0"),
        ("training.seed=-1", "of at least 0 and below"),
        ("model.adapter.total_parameter_budget_mb=0", "above 0, or null"),
        (
            "model.adapter.ewc_lambda=0",
            "key 'model.adapter.ewc_lambda' of run 'demo-himalaya': found 0, expected a numb",
        ),
        ("model.adapter.ewc_lambda=.nan", "above 0, or null"),
        ("model.adapter.ewc_lambda=.inf", "above 0, or null"),
        ("model.adapter.ewc_lambda=0.4", "expected null: HIMALAYA protects earlier tasks itself"),
        ("model.backbone.frozen=false", "only the adapter is trained"),
        (
            "model.backbone.quantisation=4bit",
            'found "4bit", expected one of 4-bit, 4-bit QLoRA, or null',
        ),
        ("model.backbone.dtype=bf16", 'found "bf16", expected one of auto, float32'),
        ("method=propsed", "expected one of proposed, comparative"),
        ("training.protocol=sequental", "expected one of sequential, independent"),
        ("training.optimizer=adam", "expected one of adamw"),
        ("training.lr_scheduler=linaer", "expected one of linear, cosine"),
        ("training.mixed_precision=fp32", "key 'training.mixed_precision' of run 'demo-himalaya': found \"fp32\""),
        ("training.report_to=tensorbord", "expected one of none, tensorboard"),
        ("evaluation.primary_metric=acc", 'found "acc", expected one of retained_accuracy_auc'),
        ("run_id=../elsewhere", "run_id '../elsewhere' is not the name of a folder: it begins with a dot"),
        ("run_id=a/b", "it holds a slash"),
        ("run_id=..", "it begins with a dot"),
        ("run_id=.scores", "it begins with a dot; hidden names are kept for the program"),
        ("run_id=comparison", "'comparison' is kept for the program"),
        ("run_id=''", "it is empty"),
        ('run_id="a\\nb"', "it holds a control character"),
        (f"run_id={'x' * 300}", "xxxx…' is not the name of a folder: it is longer than 200 bytes"),
    ],
)
def test_a_silly_value_is_one_clear_line(word: str, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        check_run(compose_run([RUN, word]).run)
    assert message in str(caught.value)


def test_the_primary_metric_is_one_that_is_computed() -> None:
    assert all(callable(getattr(metrics, name)) for name in get_args(Metric))


def test_a_key_that_a_written_config_does_not_have_is_at_its_default() -> None:
    run = asdict(compose_run(["run=demo-lora"]).run)
    older = {section: dict(content) if isinstance(content, dict) else content for section, content in run.items()}
    del older["dataset"]["order"]
    check_same(older, run, "a run", "one")
    with pytest.raises(HimalayaError, match=r"a run was begun with dataset\.order='given', this one has 'reversed'"):
        check_same(older, run | {"dataset": run["dataset"] | {"order": "reversed"}}, "a run", "one")


def test_a_folder_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "place" / "backbone").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = [RUN, "model.backbone.name=place/backbone", "dataset.tokenizer=place/backbone"]
    run = compose_run(words).run
    assert run.model.backbone.name == run.dataset.tokenizer == str(tmp_path / "place" / "backbone")
    assert compose_run([RUN, "model.backbone.name=owner/name"]).run.model.backbone.name == "owner/name"
    check_run(run)
