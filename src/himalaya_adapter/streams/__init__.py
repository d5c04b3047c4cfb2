"""Streams of tasks: where their data comes from, how it is split and how it becomes tokens."""

from himalaya_adapter.streams.catalogue import load_stream, stream_names
from himalaya_adapter.streams.encoding import encode_item, encode_prompt, encode_target
from himalaya_adapter.streams.plain_text import held_out_text
from himalaya_adapter.streams.task import Item, Limits, Stream, Task, TaskSpec

__all__ = [
    "Item",
    "Limits",
    "Stream",
    "Task",
    "TaskSpec",
    "encode_item",
    "encode_prompt",
    "encode_target",
    "held_out_text",
    "load_stream",
    "stream_names",
]
