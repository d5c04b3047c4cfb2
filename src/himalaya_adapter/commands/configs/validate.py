"""``himalaya configs validate``."""

from pathlib import Path

from himalaya_adapter.errors import HimalayaError, one_line


def command(files: list[Path]) -> None:
    """Check run configs, one line for each file."""
    from himalaya_adapter.experiments.plans import read_runs
    from himalaya_adapter.methods.construction import run_method

    wrong = 0
    for path in files:
        try:
            for run in read_runs(path):
                run_method(run)
            print(f"{path}: ok")
        except HimalayaError as error:
            wrong += 1
            print(f"{path}: {one_line(error)}")
    if wrong:
        raise HimalayaError(f"{wrong} of {len(files)} files hold a run config that is not valid")
