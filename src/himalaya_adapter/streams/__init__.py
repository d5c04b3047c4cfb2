"""Streams of tasks: where their data comes from, how it is split and how it becomes tokens."""

from himalaya_adapter.streams.catalogue import load_stream, stream_names
from himalaya_adapter.streams.task import Item, Limits, Stream, Task

__all__ = ["Item", "Limits", "Stream", "Task", "load_stream", "stream_names"]
