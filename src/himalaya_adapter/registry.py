"""One row for each method: all that is known of it outside of its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from himalaya_adapter.documents import read_document


@dataclass(frozen=True)
class Method:
    """A method, as run configs, PEFT and reports know it.

    Args:
        type: Its `PeftType`, and ``model.adapter.type`` of a run.
        color: Its colour in all figures; ``None``: the first that is left.
        module: Where its config and its tuner are imported from; empty for a method of PEFT's own.
        config: Name of its config class there.
        tuner: Name of its tuner class there.
        protects_itself: Whether it keeps earlier tasks without EWC.
        options: The option of its config that each run key sets.
        fixed: Run keys with one possible value: the value, and why there is no other.
    """

    type: str
    color: str | None = None
    module: str = ""
    config: str = ""
    tuner: str = ""
    protects_itself: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, tuple[object, str]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The run keys that belong to it."""
        return {*self.options, *self.fixed}


ROWS = TypeAdapter(list[Method]).validate_python(read_document(Path(__file__).with_suffix(".yaml")))
METHODS = {row.type: row for row in ROWS}


def method_row(name: str) -> Method:
    """The row of a method, in any case; of one that has none, what is true of most methods of PEFT."""
    return METHODS.get(name.upper(), Method(name.upper()))
