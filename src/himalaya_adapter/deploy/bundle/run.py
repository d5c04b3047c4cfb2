"""Starts a bundle's commands; it lies at the top of every bundle: ``python run.py --help``."""

import sys
from pathlib import Path

try:
    from runner.command import main  # type: ignore[import-not-found]
except ImportError as error:
    print(f"run.py: {error}; it needs Python 3.11 or newer and the bundle's folder runner/ beside it", file=sys.stderr)
    sys.exit(2)

sys.exit(main(Path(__file__).resolve().parent))
