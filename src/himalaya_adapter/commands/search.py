"""``himalaya search``."""

from himalaya_adapter.commands import Overrides

CONTINUES = True


def command(overrides: Overrides) -> None:
    """Search the run's hyper-parameters; several processes may share it, and it continues, too.

    For example: himalaya search run=demo-lora optuna.n_trials=20 results_dir=outputs
    """
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.report import write_search_report
    from himalaya_adapter.search import run_search

    launch = compose_run(overrides)
    print(write_search_report(run_search(launch.run, launch.results_dir, overwrite=launch.overwrite)))
