"""Learning a stream: one task after another, resumable at any moment. The runner is loaded at first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stream_runner import run_stream

__all__ = ["run_stream"]


def __getattr__(name: str) -> Any:
    if name != "run_stream":  # the callback alone needs no streams
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from .stream_runner import run_stream

    return run_stream
