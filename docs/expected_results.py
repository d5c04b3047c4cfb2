"""What the original experiment plan expects beside what the compared runs measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import yaml

from himalaya_adapter.report.comparison import PROPOSED, Comparison
from himalaya_adapter.report.formats import format_deviation, format_value
from himalaya_adapter.report.method_groups import MethodGroup, Spread, spread
from himalaya_adapter.report.run_folder import RunRecord
from himalaya_adapter.report.table import Table, Text
from himalaya_adapter.stream_metrics import METRICS, Kind

Verdict = Literal["met", "not met", "not measured"]
CLAIMS = Path(__file__).with_suffix(".yaml")
MOST_NAMED = 3  # tasks that a remark names one by one


@dataclass(frozen=True)
class ExpectedResult:
    """One claim and what became of it.

    Attributes:
        claim: What the source says.
        rule: When it counts as met, such as ``≤ 0.015``; empty for what no run can say.
        method: Whose number it is, ``A − B`` for a difference; empty if no such method was compared.
        measured: Mean over the seeds, None if it was not measured.
        text: The same as it is printed.
        verdict: ``met``, ``not met`` or ``not measured``.
        remark: How the measurement differs from the source's, or why there is none.
    """

    claim: str
    rule: str
    method: str
    measured: Spread | None
    text: str
    verdict: Verdict
    remark: str


def expected_results(main: Comparison, sections: Mapping[str, Comparison]) -> list[ExpectedResult]:
    """Every claim of ``expected_results.yaml``, once for each method that it is about.

    The verdict goes by the mean over the seeds as it was measured; neither seeds nor test items lend it a margin.

    Args:
        main: Runs over the whole stream.
        sections: Others, by the name that a claim says in ``section``.
    """
    content = _content()
    results = []
    for claim in content["claims"]:
        comparison = sections[claim["section"]] if "section" in claim else main
        differs = _differs(comparison, content["planned_tasks"])
        rule = _rule(claim)
        pairs = _pairs(comparison, claim)
        if "unmeasured" in claim or isinstance(pairs, str):
            reason = claim.get("unmeasured") or pairs
            results.append(ExpectedResult(claim["claim"], rule, "", None, "–", "not measured", str(reason)))
            continue
        for group, rival in pairs:
            label = f"{group.label} − {rival.label}" if rival else group.label
            measured = _measured(claim, group, rival)
            if isinstance(measured, str):
                results.append(ExpectedResult(claim["claim"], rule, label, None, "–", "not measured", measured))
                continue
            verdict: Verdict = "met" if _holds(claim, measured.mean) else "not met"
            remark = "; ".join(part for part in (_tasks_named(claim, group.first), differs) if part)
            kind = _kind(claim)
            text = f"{format_value(measured.mean, kind)} {format_deviation(measured, kind)}".strip()
            results.append(ExpectedResult(claim["claim"], rule, label, measured, text, verdict, remark))
    return results


@cache
def _content() -> dict[str, Any]:
    return dict(yaml.safe_load(CLAIMS.read_text(encoding="utf-8")))


def _differs(comparison: Comparison, planned: int) -> str:
    tasks = len(comparison.reference.first.tasks)
    return "" if tasks == planned else f"after {tasks} tasks, not {planned}"


def _pairs(comparison: Comparison, claim: Mapping[str, Any]) -> Sequence[tuple[MethodGroup, MethodGroup | None]] | str:
    """The methods that a claim is about, each with its rival; or why there are none."""
    own, rivals = _of_type(comparison, claim["method"]), _of_type(comparison, claim.get("against", ""))
    if not own:
        return f"no run of {claim['method'].upper()} is compared"
    if "against" not in claim:
        return [(group, None) for group in own]
    if not rivals:
        return f"no run of {claim['against'].upper()} is compared"
    return [(group, rival) for group in own for rival in rivals]


def _of_type(comparison: Comparison, method: str) -> list[MethodGroup]:
    is_ours = method in PROPOSED
    candidates = [comparison.reference] if is_ours else comparison.groups
    wanted = PROPOSED if is_ours else (method,)
    return [group for group in candidates if group.method in wanted and not group.first.is_bound]


def _measured(claim: Mapping[str, Any], group: MethodGroup, rival: MethodGroup | None) -> Spread | str:
    """The number that a claim is about, or why there is none. Of a difference only the mean is known over seeds."""
    of_methods = []
    for one in (group, rival) if rival else (group,):
        values = [_value(claim, run) for run in one.runs]
        known = [value for value in values if value is not None]
        if not known:
            wanted = " ".join(claim["tasks"].values()) if "tasks" in claim else claim["metric"]
            return f"the stream has no task of this kind ({wanted})" if "tasks" in claim else f"no {wanted} recorded"
        of_methods.append(spread(known))
    if len(of_methods) == 1:
        return of_methods[0]
    own, other = of_methods
    return Spread(own.mean - other.mean, None, min(own.n, other.n))


def _value(claim: Mapping[str, Any], run: RunRecord) -> float | None:
    if "metric" in claim:
        value = run.metrics.get(claim["metric"])
        return None if value is None else float(value)
    scores = [task["final"]["score"] for task in _tasks(claim, run)]
    return fmean(scores) if scores else None


def _tasks(claim: Mapping[str, Any], run: RunRecord) -> list[dict[str, Any]]:
    wanted = claim["tasks"].items()
    return [task for task in run.metrics["tasks"] if all(task.get(key) == value for key, value in wanted)]


def _tasks_named(claim: Mapping[str, Any], run: RunRecord) -> str:
    """Which tasks of this stream stand for the source's."""
    if "tasks" not in claim:
        return ""
    names = [task["name"] for task in _tasks(claim, run)]
    return f"of {', '.join(names)}" if len(names) <= MOST_NAMED else f"of {len(names)} tasks"


def _kind(claim: Mapping[str, Any]) -> Kind:
    if "against" in claim:
        return "signed"
    return next((metric.kind for metric in METRICS if metric.key == claim.get("metric")), "score")


def _rule(claim: Mapping[str, Any]) -> str:
    kind = _kind(claim)
    if "between" in claim:
        return " to ".join(format_value(bound, kind) for bound in claim["between"])
    for key, sign in (("at_most", "≤"), ("at_least", "≥")):
        if key in claim:
            return f"{sign} {format_value(claim[key], kind)}"
    return ""


def _holds(claim: Mapping[str, Any], value: float) -> bool:
    low, high = claim.get("between", (claim.get("at_least", value), claim.get("at_most", value)))
    return bool(low <= value <= high)


def expected_table(expected: Sequence[ExpectedResult]) -> Table:
    """The claims with their verdicts, a line each."""
    return Table(
        topic="expected_results",
        title="The original plan's expected results",
        header=tuple(
            Text(name, words=True) for name in ("expected", "met if", "method", "measured", "verdict", "remark")
        ),
        rows=tuple(
            (
                Text(result.claim),
                Text(result.rule or "–"),
                Text(result.method or "–"),
                Text(result.text),
                Text(result.verdict, bold=result.verdict == "met", warning=result.verdict == "not met"),
                Text(result.remark),
            )
            for result in expected
        ),
        legend="The verdict goes by the measured mean over seeds, without a margin for seeds or test items. Scores "
        "lie in [0, 1]: one point is 0.01.",
    )
