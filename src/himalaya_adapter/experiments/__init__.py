"""Experiments as data: the schema of a run config and how one is composed."""

from .composition import compose_run, run_names
from .run_config import RunConfig

__all__ = ["RunConfig", "compose_run", "run_names"]
