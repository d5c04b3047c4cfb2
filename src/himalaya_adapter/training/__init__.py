"""Learning a stream: one task after another, resumable at any moment."""

from .stream_runner import run_stream

__all__ = ["run_stream"]
