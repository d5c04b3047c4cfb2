"""What a search leaves for people and for the next command: ``trials.json`` and ``best.yaml``."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from himalaya_adapter.documents import document_text
from himalaya_adapter.experiments.validation import with_values
from himalaya_adapter.identity import sealed
from himalaya_adapter.search.study import REASON, SAME_AS, SharedStudy
from himalaya_adapter.storage import write_atomic, write_json

FORMAT = 1
TRIALS_FOR_IMPORTANCE = 10  # finished ones that differ; below, what is important is mostly chance
BEST_SHARE = 0.25  # importance is that of being among this share of the trials


def write_results(shared: SharedStudy) -> None:
    """Write what is known so far into the search's folder. The caller holds the study's lock."""
    run, trials = shared.run, shared.trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = shared.study.best_trial if complete else None
    found = sealed(
        {
            "format": FORMAT,
            "run_id": run.run_id,
            "method_name": run.method_name,
            "backbone": run.model.backbone.name,
            "stream": run.optuna.stream,
            "metric": run.evaluation.primary_metric,
            "direction": shared.direction,
            "n_trials": run.optuna.n_trials,
            "seed": run.training.seed,
            "search_space": {
                name: {"key": shared.keys[name]} | values.given() for name, values in run.optuna.search_space.items()
            },
            "best": best.number if best else None,
            "importance": _importance(shared, complete),
            "trials": [_record(shared, trial) for trial in trials],
        }
    )
    write_json(shared.folder / "trials.json", found)
    if best:
        # On its own stream, with a name of its own beside the run with the values as written.
        values = {shared.keys[name]: value for name, value in shared.values(best).items()}
        chosen = with_values(run, {"run_id": f"{run.run_id}-best", "optuna": {}, **values})
        write_atomic(shared.folder / "best.yaml", document_text(asdict(chosen)))


def _record(shared: SharedStudy, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "parameters": shared.values(trial),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "after_task": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        # From the first process's start to the last one's end, whatever lies between.
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "reason": trial.user_attrs.get(REASON),
        "same_as": trial.user_attrs.get(SAME_AS),
    }


def _importance(shared: SharedStudy, complete: Sequence[FrozenTrial]) -> dict[str, float] | None:
    """Share of each hyper-parameter in what sets the best quarter apart (PED-ANOVA, Watanabe et al., 2023).

    ``None`` while there are too few trials to tell.
    """
    if sum(SAME_AS not in trial.user_attrs for trial in complete) < TRIALS_FOR_IMPORTANCE:
        return None
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    return {name: float(share) for name, share in get_param_importances(shared.study, evaluator=evaluator).items()}
