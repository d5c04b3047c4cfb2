"""Comparisons: seeds put together, paired tests on the same items, and what is refused or left out with a note."""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import pytest
import yaml

from himalaya_adapter.cli import main
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.item_scores import FILE
from himalaya_adapter.evaluation.metrics import ScoredRun
from himalaya_adapter.report import markdown, score_figures, write_comparison
from himalaya_adapter.report.comparison import Comparison, compare
from himalaya_adapter.report.method_groups import group_by_method
from himalaya_adapter.report.palette import METHOD_COLORS
from himalaya_adapter.report.run_folder import RunRecord, read_comparable_runs
from himalaya_adapter.report.score_tables import measure_differences
from himalaya_adapter.storage import read_json, write_atomic, write_json

TASKS = ["sarcasm", "verse_book_fr", "law_topic_pt"]
MakeRun = Callable[..., Path]


def comparison_of(place: Path, *run_ids: str) -> Comparison:
    return compare(read_comparable_runs(place, run_ids))


@pytest.fixture
def two_methods(make_run: MakeRun, tmp_path: Path) -> Path:
    """HIMALAYA with seeds 0–2, LoRA with seeds 0 and 1, which forgets; ``h0`` … ``l1``."""
    for seed in range(3):
        make_run(f"h{seed}", tasks=TASKS, seed=seed)
    for seed in range(2):
        make_run(f"l{seed}", tasks=TASKS, seed=seed, method="lora", method_name="LoRA", forgetting_rate=0.15)
    return tmp_path


def test_runs_that_differ_in_the_seed_are_one_method(two_methods: Path) -> None:
    groups = group_by_method(read_comparable_runs(two_methods, ["l1", "h2", "h0", "l0", "h1"]))
    assert [(group.label, group.seeds) for group in groups] == [("LoRA", (0, 1)), ("HIMALAYA", (0, 1, 2))]
    values = [read_json(two_methods / f"h{seed}" / "metrics.json")["forgetting"] for seed in range(3)]
    spread = groups[1].spread("forgetting")
    assert (spread.mean, spread.deviation, spread.n) == (fmean(values), stdev(values), 3)
    assert groups[0].spread("atom_norm_max") is None
    finals = [run.final[0]["score"] for run in groups[1].runs]
    cell = groups[1].final[0]
    assert cell["score"] == pytest.approx(fmean(finals))
    assert cell["high"] - cell["score"] == pytest.approx(stdev(finals))


def test_any_other_setting_makes_another_method(two_methods: Path) -> None:
    path = two_methods / "h2" / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["training"]["learning_rate"] = 0.02
    write_atomic(path, yaml.safe_dump(config))
    groups = group_by_method(read_comparable_runs(two_methods, ["h0", "h1", "h2"]))
    assert [group.label for group in groups] == ["HIMALAYA (h0)", "HIMALAYA (h2)"]
    assert [group.seeds for group in groups] == [(0, 1), (2,)]


def test_what_a_search_would_try_makes_no_other_method(two_methods: Path) -> None:
    path = two_methods / "h2" / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config.setdefault("optuna", {})["n_trials"] = 3
    write_atomic(path, yaml.safe_dump(config))
    assert len(group_by_method(read_comparable_runs(two_methods, ["h0", "h1", "h2"]))) == 1


def test_a_config_from_before_a_key_is_that_of_the_keys_default(two_methods: Path) -> None:
    path = two_methods / "h2" / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config.setdefault("dataset", {})["order"] = "given"
    write_atomic(path, yaml.safe_dump(config))
    assert len(group_by_method(read_comparable_runs(two_methods, ["h0", "h1", "h2"]))) == 1
    config["dataset"]["order"] = "reversed"
    write_atomic(path, yaml.safe_dump(config))
    assert len(group_by_method(read_comparable_runs(two_methods, ["h0", "h1", "h2"]))) == 2


def test_runs_that_learnt_from_other_items_are_two_methods(two_methods: Path) -> None:
    path = two_methods / "h2" / "environment.json"
    environment = read_json(path)
    environment["data_hashes"][TASKS[1]]["train"] = "0" * 64
    write_json(path, environment)
    groups = group_by_method(read_comparable_runs(two_methods, ["h0", "h1", "h2"]))
    assert [(group.label, group.seeds) for group in groups] == [("HIMALAYA (h0)", (0, 1)), ("HIMALAYA (h2)", (2,))]


def test_runs_on_other_weights_are_refused(two_methods: Path) -> None:
    for run_id, revision in (("h1", "a"), ("l0", "b"), ("l1", None)):
        path = two_methods / run_id / "environment.json"
        write_json(path, {**read_json(path), "backbone_revision": revision})
    assert len(read_comparable_runs(two_methods, ["h0", "h1", "l1"])) == 3, "two runs have not recorded it"
    with pytest.raises(HimalayaError, match="'h1' and 'l0' cannot be compared: backbone_revision 'a' against 'b'"):
        read_comparable_runs(two_methods, ["h0", "h1", "l1", "l0"])


def test_a_bound_says_what_it_is_and_is_no_reference(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("still", tasks=TASKS, protocol="frozen")
    lora = {"tasks": TASKS, "method": "lora", "method_name": "LORA"}
    make_run("alone", tasks=TASKS, method="lora", method_name="One LoRA a task", protocol="independent")
    make_run("kept", **lora, protocol="replay")
    make_run("plain", **lora)
    comparison = comparison_of(tmp_path, "still", "alone", "kept", "plain")
    labels = ["HIMALAYA (frozen)", "One LoRA a task", "LORA (replay)", "LORA"]
    assert [group.label for group in comparison.groups] == labels
    assert comparison.reference.label == "LORA"
    assert comparison.notes == ("LORA (replay): the training items kept are not in the stored bytes.",)
    (alone,) = comparison_of(tmp_path, "kept").groups
    assert alone.label == "LORA (replay)"
    assert comparison_of(tmp_path, "alone", "still").reference.label == "HIMALAYA (frozen)", "there are bounds only"


def test_the_same_method_with_the_same_seed_twice_is_refused(two_methods: Path) -> None:
    shutil.copytree(two_methods / "h1", two_methods / "again")
    with pytest.raises(HimalayaError, match=r"'h1' and 'again' are the same method .* training\.seed=1") as caught:
        comparison_of(two_methods, "h0", "h1", "again")
    assert "\n" not in str(caught.value)
    (two_methods / "again" / "config.yaml").write_text("training: [")
    with pytest.raises(HimalayaError, match=r"cannot read .*config\.yaml"):
        comparison_of(two_methods, "h0", "again")


def test_himalaya_is_the_reference_and_the_forgetful_are_found_out(two_methods: Path) -> None:
    comparison = comparison_of(two_methods, "l0", "l1", "h0", "h1", "h2")
    assert comparison.reference.label == "HIMALAYA"
    (lora,) = comparison.rivals
    assert list(lora.measures) == ["retained_accuracy_auc", "average_accuracy", "learning_accuracy", "forgetting"]
    forgetting = lora.measures["forgetting"]
    own = fmean(comparison.groups[1].values("forgetting")[:2])  # of the seeds that LoRA has, too
    assert lora.seeds == (0, 1)
    assert forgetting.difference == pytest.approx(own - fmean(lora.group.values("forgetting")))
    assert forgetting.interval is not None
    assert forgetting.interval[1] < 0
    assert forgetting.significant
    assert forgetting.p_holm >= forgetting.p
    assert not lora.measures["learning_accuracy"].significant
    assert (lora.tasks[TASKS[0]].interval or (0,))[0] > 0  # forgotten
    assert not lora.tasks[TASKS[-1]].significant  # nothing came after it
    assert comparison == comparison_of(two_methods, "l0", "l1", "h0", "h1", "h2")  # drawn with a seed of its own


def test_two_methods_with_the_same_answers_do_not_differ(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", tasks=TASKS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "b" / "config.yaml"
    write_atomic(path, path.read_text(encoding="utf-8").replace("0.01", "0.02"))
    (other,) = comparison_of(tmp_path, "a", "b").rivals
    assert len(other.measures) == 4
    for of, test in (other.measures | other.tasks).items():
        assert (test.difference, test.interval, test.p) == (0.0, (0.0, 0.0), 1.0), of


@pytest.mark.parametrize("items", [1, 3, 8])
def test_a_few_items_that_differ_alike_prove_nothing(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: int
) -> None:
    def all_right_or_wrong(run: RunRecord) -> ScoredRun:
        score = float(run.run_id == "a")
        return ScoredRun(
            [[score], [None, score], [0.0, score, 0.0]],
            [[[score]], [None, [score] * items], [[0.0], [score] * items, [0.0]]],
        )

    monkeypatch.setattr(RunRecord, "scored_items", all_right_or_wrong)
    make_run("a", tasks=TASKS)
    make_run("b", tasks=TASKS, method="lora", method_name="LoRA")
    (lora,) = comparison_of(tmp_path, "a", "b").rivals
    assert lora.tasks[TASKS[1]].p == 2.0 ** (1 - items)
    assert lora.tasks[TASKS[1]].interval is None
    assert "no interval" in write_comparison(tmp_path, ["a", "b"], tmp_path / "out").read_text(encoding="utf-8")
    assert lora.measures.pop("average_accuracy").p == 2.0 ** (1 - items), "it reads the last row alone"
    assert {test.p for test in lora.measures.values()} == {2.0**-items}, "the first task's item differs, too"


def test_methods_without_a_common_seed_are_compared_unpaired(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", tasks=TASKS, seed=0)
    make_run("b", tasks=TASKS, seed=1, method="lora", method_name="LoRA")
    comparison = comparison_of(tmp_path, "a", "b")
    assert [rival.seeds for rival in comparison.rivals] == [()]
    assert "| LoRA | not paired |" in markdown.document(comparison, measure_differences(comparison))


def test_runs_without_item_scores_are_told_and_not_tested(two_methods: Path) -> None:
    (two_methods / "l1" / FILE).unlink()
    comparison = comparison_of(two_methods, "h0", "h1", "l0", "l1")
    assert comparison.rivals == ()
    assert comparison.notes == ("No item scores are kept of l1: no paired tests with these runs.",)
    path = write_comparison(two_methods, ["h0", "h1", "l0", "l1"], two_methods / "out")
    for file in (path, path.with_name("tables.md"), path.with_name("tables.tex")):
        assert comparison.notes[0] in file.read_text(encoding="utf-8")
    assert "_differences" not in path.read_text(encoding="utf-8").split('id="figures"')[1].split("</script>")[0]


def test_runs_in_different_precisions_are_told(two_methods: Path) -> None:
    for run_id, dtype in (("h0", "bfloat16"), ("h1", "float32"), ("l0", "float32")):
        path = two_methods / run_id / "environment.json"
        write_json(path, {**read_json(path), "dtype": dtype})
    assert comparison_of(two_methods, "h0", "h1", "l0").notes == (
        "The backbones had different precisions (bfloat16: h0; float32: h1, l0), which alone moves scores a little.",
    )
    assert comparison_of(two_methods, "h1", "l0").notes == ()


def test_other_measured_rows_leave_out_what_depends_on_them(two_methods: Path) -> None:
    path = two_methods / "l0" / "metrics.json"
    write_json(path, {**read_json(path), "measured_rows": [1, 3]})
    comparison = comparison_of(two_methods, "h0", "l0")
    assert [list(rival.measures) for rival in comparison.rivals] == [["average_accuracy", "learning_accuracy"]]
    assert comparison.notes == ("LoRA measured other rows of the matrix: no tests of its AUC and forgetting.",)


def test_aggregated_metrics_hold_methods_and_tests(two_methods: Path) -> None:
    run_ids = ["h0", "h1", "h2", "l0", "l1"]
    page = write_comparison(two_methods, run_ids, two_methods / "out").read_text(encoding="utf-8")
    found = read_json(two_methods / "out" / "aggregated_metrics.json")
    assert found["format"] == 2
    assert list(found["runs"]) == run_ids
    himalaya, lora = found["methods"]
    assert (himalaya["run_ids"], himalaya["seeds"]) == (["h0", "h1", "h2"], [0, 1, 2])
    assert (lora["method"], lora["metrics"]["forgetting"]["n"]) == ("lora", 2)
    values = [found["runs"][run_id]["average_accuracy"] for run_id in ("l0", "l1")]
    assert lora["metrics"]["average_accuracy"] == {"mean": fmean(values), "deviation": stdev(values), "n": 2}
    tests = found["paired_tests"]
    assert (tests["reference"], tests["resamples"], tests["notes"]) == ("HIMALAYA", 10_000, [])
    assert [entry["of"] for entry in tests["tasks"]] == TASKS
    assert all(entry["low"] <= entry["difference"] <= entry["high"] for entry in tests["measures"])
    assert all(entry["p"] <= entry["p_holm"] <= 1 for entry in tests["measures"])
    for run_id in run_ids:  # every seed's number stays visible
        assert f"{found['runs'][run_id]['retained_accuracy_auc']:.3f}" in page


def test_one_method_of_several_seeds_is_a_comparison_without_tests(two_methods: Path) -> None:
    comparison = comparison_of(two_methods, "h0", "h1", "h2")
    assert comparison.rivals == comparison.notes == ()
    page = write_comparison(two_methods, ["h0", "h1", "h2"], two_methods / "out").read_text(encoding="utf-8")
    assert "Seed by seed" in page
    assert "Paired" not in page


def test_every_method_has_a_colour_of_its_own(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(12):
        method = ["himalaya", "lora", "o_lora"][number % 3]
        make_run(f"run{number}", tasks=TASKS[:1], method=method, method_name=f"method {number}")
    groups = group_by_method(read_comparable_runs(tmp_path, [f"run{number}" for number in range(12)]))
    styles = [group.look for group in groups[:8]]
    assert len({style.color for style in styles}) == 8
    assert [style.color for style in styles[:2]] == [METHOD_COLORS["himalaya"], METHOD_COLORS["lora"]]
    looks = {(style.color, style.marker, style.dash) for style in (group.look for group in groups)}
    assert len(looks) == 12  # colours come again, marker and dash are then others


def test_the_frozen_model_is_drawn_once(make_run: MakeRun, tmp_path: Path) -> None:
    """As the grey marks of every figure, not as a method as well; a comparison of nothing else shows it."""
    for method in ("himalaya", "lora"):
        make_run(method, tasks=TASKS, method=method, method_name=method)
    make_run("frozen", tasks=TASKS, method="lora", method_name="Frozen", protocol="frozen")
    groups = group_by_method(read_comparable_runs(tmp_path, ["himalaya", "lora", "frozen"]))
    for draw in (score_figures.retained_accuracy, score_figures.learning_by_position):
        charts = draw(groups).charts
        assert {one.look.label for chart in charts for one in chart.series} == {"himalaya", "lora", "frozen model"}
    assert "Frozen" not in str(score_figures.scores_by_method(groups).charts)
    assert "Frozen" in str(score_figures.retained_accuracy(groups[2:]).charts)


def test_a_run_that_was_about_to_be_deleted_is_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("lora", tasks=TASKS, method="lora").rename(tmp_path / ".lora.deleted")
    for run_id in ("himalaya", "lora"):
        make_run(run_id, tasks=TASKS, method=run_id)
    assert main(["compare", str(tmp_path)]) == 0
    assert read_json(tmp_path / "comparison" / "aggregated_metrics.json")["runs"].keys() == {"himalaya", "lora"}
