"""What can happen to an adapter in a stream, and how ``events.jsonl`` holds it."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Something that happened. Fields that are ``None`` do not apply, and are not written down."""

    kind: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """As a file holds it: its kind under ``event``, then its fields."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"event": self.kind} | {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Sharing(Event):
    """A learnt atom went to the slot of one that points the same way.

    Args:
        slot: The slot.
        similarity: Cosine of the two.
    """

    kind = "sharing"
    slot: int
    similarity: float


@dataclass(frozen=True)
class Eviction(Event):
    """A slot of earlier tasks was taken.

    Args:
        slot: The slot.
        survives: Share of what it held that lives on, in [0, 1].
        tasks: Those that used it.
        importance: How much they did.
        newcomer: The atom that takes its place among the active ones.
    """

    kind = "eviction"
    slot: int
    survives: float | None = None
    tasks: tuple[str, ...] | None = None
    importance: float | None = None
    newcomer: int | None = None


@dataclass(frozen=True)
class Promotion(Event):
    """A residual became an atom, inside a task.

    Args:
        slot: Where.
        similarity: Mean cosine of the residuals with their closest atom.
        evicted: The slot, if the task had an atom there.
        survives: Share of that atom which lives on, in [0, 1].
    """

    kind = "promotion"
    slot: int
    similarity: float | None
    evicted: int | None = None
    survives: float | None = None


@dataclass(frozen=True)
class SkippedStep(Event):
    """A step whose loss or gradient was not finite changed nothing."""

    kind = "skipped_step"
