"""The source's claims beside measured numbers: who they are about, when they are met, why they are not measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from expected_results import ExpectedResult, expected_results
from pages import CHANGED, changed_runs, metrics_of

from himalaya_adapter.report.comparison import compare
from himalaya_adapter.storage import write_json

TASKS = ["film", "intent", "translate", "headline"]
MakeRun = Callable[..., Path]


def results(place: Path, *run_ids: str) -> dict[str, list[ExpectedResult]]:
    found: dict[str, list[ExpectedResult]] = {}
    runs = compare(changed_runs(place, run_ids))
    for result in expected_results(runs, {"three_kinds": runs, "rivals": runs}):
        found.setdefault(result.claim, []).append(result)
    return found


def set_metrics(folder: Path, finals: list[float] | None = None, **values: Any) -> None:
    """Set metrics of a run, and the final scores of its tasks, of which the last two are no classification."""
    metrics = {**metrics_of(folder), **values}
    kinds = ("classification", "classification", "generation", "generation")
    names = ("accuracy", "accuracy", "bleu", "rouge_l")
    for index, task in enumerate(metrics["tasks"]):
        task.update(kind=kinds[index], metric=names[index], language="en-de" if index == 2 else "en")
        if finals:
            task["final"]["score"] = finals[index]
    write_json(folder / CHANGED, metrics)


@pytest.fixture
def place(make_run: MakeRun, tmp_path: Path) -> Path:
    set_metrics(make_run("h", tasks=TASKS), [0.7, 0.6, 0.31, 0.2], forgetting=0.015, stored_bytes=2_400_000)
    rivals = {"lilac": "LILAC", "lora": "LoRA"}
    for method, name in rivals.items():
        folder = make_run(method, tasks=TASKS, method=method, method_name=name)
        set_metrics(folder, [0.68, 0.59, 0.305, 0.18], forgetting=0.06)
    bound = make_run("bound", tasks=TASKS, method="lora", method_name="LoRA, independent", protocol="independent")
    set_metrics(bound, forgetting=0.0)
    return tmp_path


def test_verdicts_follow_the_measured_numbers(place: Path) -> None:
    found = results(place, "lora", "lilac", "h", "bound")
    verdicts = {claim: [(one.method, one.verdict) for one in of_claim] for claim, of_claim in found.items()}
    assert verdicts == {
        "HIMALAYA forgets at most 1.5 points on average": [("HIMALAYA", "met")],
        "LoRA forgets 5 to 8 points": [("LoRA", "met")],  # not the bound, which is no stream
        "LILAC forgets 2.7 points or more": [("LILAC", "met")],
        "COLTAS forgets 2.7 points or more": [("", "not measured")],
        "1 to 3 points above LILAC on classification": [("HIMALAYA − LILAC", "met")],  # 0.65 − 0.635
        "0.6 BLEU above LILAC on English to German": [("HIMALAYA − LILAC", "not met")],  # 0.5 BLEU
        "1.4 ROUGE-L above LILAC on summarisation": [("HIMALAYA − LILAC", "met")],
        "2.3 MB of extra storage": [("HIMALAYA", "not met")],
        "Norm of the atoms at most 1.05": [("HIMALAYA", "met")],
        "Trained in less than 24 hours": [("HIMALAYA", "met")],
        "7 % of latency on a Raspberry Pi 4": [("", "not measured")],
        "Less than 4 % of extra FLOPs": [("", "not measured")],
    }
    (bleu,) = found["0.6 BLEU above LILAC on English to German"]
    assert (bleu.rule, bleu.text) == ("≥ +0.006", "+0.005")
    assert bleu.measured.mean == pytest.approx(0.005)


def test_remarks_say_where_it_was_measured_and_why_not(place: Path) -> None:
    found = results(place, "h", "lilac")
    elsewhere = "after 4 tasks, not 25"
    assert found["2.3 MB of extra storage"][0].remark == elsewhere
    assert found["1.4 ROUGE-L above LILAC on summarisation"][0].remark == f"of headline; {elsewhere}"
    assert found["LoRA forgets 5 to 8 points"][0].remark == "no run of LORA is compared"
    assert "no Pi 4 is at hand" in found["7 % of latency on a Raspberry Pi 4"][0].remark
    set_metrics(place / "h", atom_norm_max=None)
    for folder in (place / "h", place / "lilac"):
        metrics = metrics_of(folder)
        metrics["tasks"][2]["metric"] = "chrf"
        write_json(folder / CHANGED, metrics)
    found = results(place, "h", "lilac")
    assert found["Norm of the atoms at most 1.05"][0].remark == "no atom_norm_max recorded"
    (bleu,) = found["0.6 BLEU above LILAC on English to German"]
    assert (bleu.verdict, bleu.remark) == ("not measured", "the stream has no task of this kind (en-de bleu)")
