"""``himalaya configs validate``."""

from pathlib import Path

from himalaya_adapter.errors import HimalayaError, one_line


def command(files: list[Path]) -> None:
    """Check run configs, one line for each file."""
    from himalaya_adapter.experiments.plans import check_file

    wrong = 0
    for path in files:
        try:
            check_file(path)
            print(f"{path}: ok")
        except HimalayaError as error:
            wrong += 1
            print(f"{path}: {one_line(error)}")
    if wrong:
        raise HimalayaError(f"{wrong} of {len(files)} files hold a run config that is not valid")
