"""Search of hyper-parameters: trials of one run config, on a stream and items that no result is reported on."""

from .search_runner import run_search

__all__ = ["run_search"]
