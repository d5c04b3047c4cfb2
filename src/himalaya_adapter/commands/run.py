"""``himalaya run``."""

import os

from himalaya_adapter.commands import Overrides

CONTINUES = True


def command(overrides: Overrides) -> None:
    """Learn a stream; the same command continues an interrupted run.

    For example: himalaya run run=demo-himalaya mode=trial results_dir=outputs
    """
    from himalaya_adapter.experiments import compose_run

    launch = compose_run(overrides)  # a wrong word is told at once, before what takes seconds to import

    from himalaya_adapter.deploy.run_latency import measure_secondary_metric
    from himalaya_adapter.report import write_run_report
    from himalaya_adapter.training.stream_runner import run_stream

    folder = run_stream(launch.run, launch.results_dir, overwrite=launch.overwrite)
    if os.environ.get("RANK", "0") != "0":
        return  # one process of several: the first one reports
    measured = measure_secondary_metric(launch.run, folder)
    if measured or not (folder / "report.html").is_file():
        write_run_report(folder)
    print(folder / "report.html")
