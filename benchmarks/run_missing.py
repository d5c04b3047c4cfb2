"""Runs every experiment under benchmarks/results that has a config and no results yet, and keeps what is small.

An experiment is a folder ``results/SECTION/RUN`` with a ``config.yaml``, the config of one run; its results are the
JSON files beside it. To repeat one, delete its ``metrics.json``; a run that was interrupted goes on where it was.

Run: python benchmarks/run_missing.py [--results benchmarks/results] [--work outputs/benchmarks] [SECTION/RUN ...]
"""

import argparse
from pathlib import Path

from himalaya_adapter.deploy.run_latency import measure_secondary_metric
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.storage import read_json, write_atomic, write_json
from himalaya_adapter.training.stream_runner import run_stream

RESULTS = Path(__file__).with_name("results")
KEPT = ("config.yaml", "environment.json", "events.jsonl", "item_scores.json", "matrix.json", "metrics.json")
ADAPTER_CONFIG = Path("adapter", "adapter_config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the experiments")
    parser.add_argument("--work", type=Path, default=Path("outputs/benchmarks"), help="where whole run folders lie")
    parser.add_argument("experiments", nargs="*", metavar="SECTION/RUN", help="these only")
    chosen = parser.parse_args()
    try:
        for name in missing(chosen.results, chosen.experiments):
            print(run(chosen.results / name, chosen.work), flush=True)
    except HimalayaError as error:
        raise SystemExit(f"run_missing: {error}") from error


def missing(results: Path, only: list[str]) -> list[str]:
    """Names ``SECTION/RUN`` of the experiments without results, in alphabetical order.

    Raises:
        HimalayaError: A name in ``only`` that is no experiment.
    """
    found = {str(path.parent.relative_to(results)): path.parent for path in sorted(results.glob("*/*/config.yaml"))}
    for name in only:
        if name not in found:
            raise unknown_name("experiment", name, found)
    return [name for name, folder in found.items() if name in (only or found) and not (folder / KEPT[-1]).is_file()]


def run(experiment: Path, work: Path) -> Path:
    """Run one experiment and copy its small files beside its config; the report is left in the work folder."""
    launch = compose_run([f"run={experiment / 'config.yaml'}", f"results_dir={work / experiment.parent.name}"])
    folder = run_stream(launch.run, launch.results_dir)
    measure_secondary_metric(launch.run, folder)
    config = read_json(folder / ADAPTER_CONFIG)
    config["base_model_name_or_path"] = launch.run.model.backbone.name  # PEFT writes a folder of this machine
    write_json(experiment / ADAPTER_CONFIG, config)
    for name in KEPT:
        if (folder / name).is_file():
            write_atomic(experiment / name, (folder / name).read_bytes())
    return experiment


if __name__ == "__main__":
    main()
