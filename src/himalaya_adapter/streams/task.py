"""What a task is: its specification, its items and its splits. Plain immutable data, no behaviour.

The specification is also the schema of a task's YAML entry (`experiments.schema`).
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from himalaya_adapter.experiments.schema import Count, NotNegative, Section

SPLITS = ("train", "validation", "test")
FOLDER_NAME = re.compile(r"\w[\w.-]*")


def normal_label(text: str) -> str:
    """What a label is known by: without outer white space, in one Unicode form."""
    return unicodedata.normalize("NFC", text).strip()


def _names(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str | int) for one in names):  # 1.10 would no longer be what the file has
        raise ValueError("no text")
    return tuple(map(str, names))


def _part(value: Any) -> tuple[int, int]:
    number, count = map(int, str(value).split("/"))
    if not 1 <= number <= count:
        raise ValueError("no part")
    return number, count


def _task_name(value: str) -> str:
    name = unicodedata.normalize("NFC", value)
    # Many scripts write vowels as marks on letters.
    if not FOLDER_NAME.fullmatch("".join(one for one in name if not unicodedata.category(one).startswith("M"))):
        raise ValueError("no name of a folder")
    return name


def _by_value(labels: Any) -> Any:
    """Labels by the source's values, which in a list are the labels themselves."""
    is_list = isinstance(labels, list) and all(isinstance(one, str) for one in labels)
    return {one: one for one in labels} if is_list else labels


def _normal_labels(labels: Mapping[str, str]) -> dict[str, str]:
    normal = {normal_label(value): normal_label(label) for value, label in labels.items()}
    if len(normal) < len(labels) or len({*normal.values()}) == 1:
        raise ValueError("two values are one, or there is only one label")
    return normal


def _taken(expected: str, **limits: Any) -> Any:
    """A field with what it takes in words, for messages."""
    return Field(json_schema_extra={"expected": expected}, **limits)


# YAML reads an unquoted `true` or `7` as no text, hence the advice.
Text = Annotated[str, Strict(), _taken("non-empty text (quote it in YAML)", pattern=r"\S")]
Name = Annotated[str, Strict(), _taken("the name of a configuration or a split", pattern=r"^\w[\w.-]*$")]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), _taken("a text, or a list of texts (quote numbers)")]
TaskName = Annotated[
    str,
    Strict(),
    AfterValidator(_task_name),
    _taken("the name of a folder: letters, digits and '_', inside it '-' and '.'"),
]
Template = Annotated[Text, AfterValidator(str.rstrip)]
Labels = Annotated[
    Mapping[Text, Text],
    BeforeValidator(_by_value),
    AfterValidator(_normal_labels),
    _taken("two or more texts (quote them in YAML), or the source's values, each with its label", alias="labels"),
]
Paths = Annotated[Mapping[str, str], _taken("field names, each with a path in a row", min_length=1)]
Filter = Annotated[Mapping[str, Names], _taken("fields, each with texts (quote numbers)")]
Part = Annotated[tuple[int, int], BeforeValidator(_part), _taken("which of how many parts, such as '1/2'")]
Share = Annotated[float, Strict(), _taken("a share of at least 0 and below 1", ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Item:
    """One example.

    Args:
        prompt: Plain text without a trailing space; ``target`` follows after one space.
        target: The text to produce, never empty.
        source: Id of the source item (story, verse, sentence template); splits are cut by its hash.
        chat: Whether the prompt is a conversation in the words of the backbone's chat template: its control tokens
            are read as such, and the target follows as it is.
    """

    prompt: str
    target: str
    source: str
    chat: bool = False


@dataclass(frozen=True)
class Archive(Section):
    """A pinned package archive: what ``pip`` is asked for, its hash, its size and its licence."""

    requirement: Annotated[str, _taken("a pin, name==version", pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")]
    sha256: Annotated[str, _taken("64 lower-case hexadecimal digits", pattern="^[0-9a-f]{64}$")]
    megabytes: NotNegative
    licence: str


@dataclass(frozen=True)
class Limits(Section):
    """The most items a split may have; ``None`` means no limit."""

    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None

    def of(self, split: str) -> int | None:
        """The limit of ``split`` (one of ``SPLITS``)."""
        return getattr(self, split)


@dataclass(frozen=True)
class HubSource(Section):
    """A data set of the Hugging Face hub.

    Args:
        id: Its name on the hub, ``owner/name``.
        config: Its configuration; ``None`` for a data set that has only one.
        revision: Commit that is read, so that the data cannot change; a branch is possible.
        train: Split that the training items come from.
        held_out: Split with labels that validation and test are cut from; ``None`` cuts all three from ``train``.
        fields: Field of the templates to the path of its value in a row, such as ``translation.en``,
            ``answers.text.0``, ``tokens.joined`` (with spaces) or ``choices.lettered`` (one a line, with letters).
        rows: No more than the first rows of ``train`` are fetched; ``None`` fetches all.
        licence: Licence of the data.
    """

    id: Text
    revision: Text
    train: Name
    fields: Paths
    licence: Text
    config: Name | None = None
    held_out: Name | None = None
    rows: Count | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are read."""
        return (self.train, self.held_out) if self.held_out else (self.train,)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return sorted({path.split(".")[0] for path in self.fields.values()})


@dataclass(frozen=True)
class Source(Section):
    """Where the rows of a task come from: files in a package archive, local files, or a data set of the hub.

    Args:
        archive: Name of an archive of ``archives.yaml`` or of the stream's own ``archives``; ``None`` for other data.
        files: Shell patterns of the files to read, in the archive or relative to the stream's YAML file; in an
            archive, a pattern that begins with ``!`` leaves files out.
        reader: Name of a reader in ``readers.READERS``.
        options: Further arguments of that reader.
        where: Row filter: field name to the list of values that are kept, in which ``*`` and ``?`` are wildcards.
        group: Fields that together name the source item; rows that agree in them never fall into different splits.
        part: ``(i, n)``: only the i-th of n disjoint parts of the source items, for tasks that share an archive.
        hub: A data set of the hub in place of files.
    """

    group: Names
    archive: Text | None = None
    files: Names = ()
    reader: Text = "table"
    options: Mapping[str, Any] = field(default_factory=dict)
    where: Filter = field(default_factory=dict)
    part: Part = (1, 1)
    hub: HubSource | None = None


@dataclass(frozen=True)
class TaskSpec(Section):
    """One validated YAML entry.

    Args:
        name: Unique in its stream; never shown to the model.
        language: BCP 47 code, or ``"en-fr"`` for a translation.
        kind: What kind of answer is asked for.
        source: Where the rows come from.
        template: The prompt, with fields of a row in braces; a trailing space is removed.
        target: The target, with fields of a row in braces.
        metric: A name in ``evaluation.text_metrics.METRICS``.
        label_of: The source's values, each with its label as it appears in a target, in their normal forms; empty
            unless a classification. In YAML ``labels``, which is a list if the values are the labels themselves.
        max_new_tokens: How far generation goes.
        caps: The most items per split.
        max_prompt_characters: Items with a longer prompt are left out; ``None`` keeps all.
        max_target_characters: Items with a longer target are left out; ``None`` keeps all.
        description: One sentence for people.
        forbidden_words: Items with one of these in the prompt, in any case, are left out, such as the source's name.
        label_noise: Share of the training items that carry a wrong label; validation and test are never changed.
        on_bad_item: ``stop`` at a row that gives no item (empty target, unknown label, no value,
            not text, not UTF-8, other number of fields), or ``skip`` and count it.
    """

    name: TaskName
    language: Text
    kind: Literal["classification", "generation", "extraction", "code"]
    source: Source
    template: Template
    target: Text
    metric: Text
    max_new_tokens: Count
    label_of: Labels = field(default_factory=dict)
    caps: Limits = Limits()
    max_prompt_characters: Count | None = None
    max_target_characters: Count | None = None
    description: Annotated[str, AfterValidator(str.strip)] = ""
    forbidden_words: Names = ()
    label_noise: Share = 0.0
    on_bad_item: Literal["stop", "skip"] = "stop"

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels there are."""
        return tuple(dict.fromkeys(self.label_of.values()))


@dataclass(frozen=True)
class Task:
    """A specification with its items.

    Args:
        hashes: Split to the SHA-256 of its content.
        skipped: Reason to the number of rows that gave no item, if the task's policy is to skip them, and of prompts
            with different targets.
    """

    spec: TaskSpec
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    hashes: dict[str, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the specification."""
        return self.spec.name

    @property
    def answers_are_lines(self) -> bool:
        """Whether no training target spans lines; the end of the line then ends a generated answer."""
        return not any("\n" in item.target for item in self.train)

    def split(self, name: str) -> tuple[Item, ...]:
        """The items of a split (one of ``SPLITS``)."""
        return getattr(self, name)


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they are learned."""

    name: str
    tasks: tuple[Task, ...]
