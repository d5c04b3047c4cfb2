"""What a task is: its specification, its items and its splits. Plain immutable data, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("classification", "generation", "extraction", "code")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Item:
    """One example.

    Args:
        prompt: Plain text without a trailing space; ``target`` follows after one space.
        target: The text to produce, never empty.
        source: Id of the source item (story, verse, sentence template); splits are cut by its hash.
    """

    prompt: str
    target: str
    source: str


@dataclass(frozen=True)
class Limits:
    """The most items a split may have; ``None`` means no limit."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None

    def of(self, split: str) -> int | None:
        """The limit of ``split`` (one of ``SPLITS``)."""
        limit: int | None = getattr(self, split)
        return limit


@dataclass(frozen=True)
class Source:
    """Where the rows of a task come from: files in a package archive, or local files.

    Args:
        archive: Name of an archive of ``archives.yaml`` or of the stream's own ``archives``; ``None`` for local files.
        files: Shell patterns of the files to read, in the archive or relative to the stream's YAML file; in an
            archive, a pattern that begins with ``!`` leaves files out.
        reader: Name of a reader in ``readers.READERS``.
        options: Further arguments of that reader.
        where: Row filter: field name to the list of values that are kept.
        group: Fields that together name the source item; rows that agree in them never fall into different splits.
        part: ``(i, n)``: only the i-th of n disjoint parts of the source items, for tasks that share an archive.
    """

    archive: str | None
    files: tuple[str, ...]
    reader: str
    options: Mapping[str, Any]
    where: Mapping[str, tuple[str, ...]]
    group: tuple[str, ...]
    part: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class TaskSpec:
    """One validated YAML entry.

    Args:
        name: Unique in its stream; never shown to the model.
        language: BCP 47 code, or ``"en-fr"`` for a translation.
        kind: One of ``KINDS``.
        source: Where the rows come from.
        template: The prompt, with fields of a row in braces; a trailing space is removed.
        target: The target, with fields of a row in braces.
        metric: A name in ``evaluation.text_metrics.METRICS``.
        labels: Label strings as they appear in a target; empty unless a classification.
        label_of: Raw value to label string, where the source's values are not the labels themselves.
        max_new_tokens: How far generation goes.
        caps: The most items per split.
        max_prompt_characters: Items with a longer prompt are left out; ``None`` keeps all.
        max_target_characters: Items with a longer target are left out; ``None`` keeps all.
        description: One sentence for people.
        forbidden_words: Items with one of these in the prompt, in any case, are left out, such as the source's name.
        label_noise: Share of the training items that carry a wrong label; validation and test are never changed.
    """

    name: str
    language: str
    kind: str
    source: Source
    template: str
    target: str
    metric: str
    labels: tuple[str, ...]
    label_of: Mapping[str, str]
    max_new_tokens: int
    caps: Limits
    max_prompt_characters: int | None
    max_target_characters: int | None
    description: str
    forbidden_words: tuple[str, ...] = ()
    label_noise: float = 0.0


@dataclass(frozen=True)
class Task:
    """A specification with its items; ``hashes`` maps each split to the SHA-256 of its content."""

    spec: TaskSpec
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the specification."""
        return self.spec.name

    def split(self, name: str) -> tuple[Item, ...]:
        """The items of a split (one of ``SPLITS``)."""
        items: tuple[Item, ...] = getattr(self, name)
        return items


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they are learned."""

    name: str
    tasks: tuple[Task, ...]
