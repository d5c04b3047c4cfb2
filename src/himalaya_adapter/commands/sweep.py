"""``himalaya sweep``."""

import sys

from himalaya_adapter.commands import Overrides
from himalaya_adapter.errors import HimalayaError

CONTINUES = True


def command(overrides: Overrides) -> None:
    """Many runs from one line, as in training.seed=0,1,2, through Hydra's launchers."""
    from himalaya_adapter.sweep import sweep

    failures = sweep(overrides)
    for failure in failures[:-1]:
        print(f"himalaya: {' '.join(failure.split())}", file=sys.stderr)
    if failures:
        raise HimalayaError(failures[-1])
