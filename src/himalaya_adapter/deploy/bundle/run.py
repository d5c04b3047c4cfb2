"""Starts a bundle's commands; it lies at the top of every bundle: ``python run.py --help``."""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (this file is copied to machines whose Python may be older)
    sys.exit("run.py: it needs Python 3.11 or newer; this is Python {}.{}".format(*sys.version_info))
try:
    from runner.command import main  # type: ignore[import-not-found]

    sys.exit(main(Path(__file__).resolve().parent))
except (ImportError, NameError, SyntaxError) as error:
    print(f"run.py: the folder runner/ beside it is damaged ({error}): copy the bundle again", file=sys.stderr)
    sys.exit(2)
