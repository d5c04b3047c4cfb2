"""The streams that come with the package, and the user's own: YAML in, tasks with splits out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from himalaya_adapter import packages
from himalaya_adapter.documents import read_document
from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.experiments.schema import Named, Section, parse
from himalaya_adapter.streams.hub import fetch_splits
from himalaya_adapter.streams.items import read_items, read_split
from himalaya_adapter.streams.readers import READERS
from himalaya_adapter.streams.splits import content_hash, cut, cut_given, form_of, stratified, with_label_noise
from himalaya_adapter.streams.task import Archive, Limits, Stream, Task, TaskSpec

CATALOGUE = Path(__file__).parent / "catalogue"
ARCHIVES = Path(__file__).parent / "archives.yaml"
OWN_DATA = "the user's own data"
WHOLE = ("labels", "where")  # of an entry: what a task is like has no part in them once they are given


@dataclass
class StreamFile(Section):
    """The schema of a stream's YAML file; its tasks are read one by one."""

    tasks: Annotated[list[Any], Field(min_length=1)]
    name: Named | None = None
    description: str = ""
    archives: dict[str, Archive] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamDefinition:
    """A stream before its data is read.

    Args:
        name: Name of the stream.
        description: One sentence for people.
        tasks: The tasks in the order in which they are learned.
        archives: Archives that the tasks may name.
        folder: Where relative local files are looked for.
    """

    name: str
    description: str
    tasks: tuple[TaskSpec, ...]
    archives: Mapping[str, Archive]
    folder: Path

    def used_archives(self) -> dict[str, Archive]:
        """The archives that the tasks name, in the order of first use."""
        names = dict.fromkeys(spec.source.archive for spec in self.tasks if spec.source.archive)
        for name in names:
            if name not in self.archives:
                raise unknown_name(f"archive in stream '{self.name}'", name, self.archives)
        return {name: self.archives[name] for name in names}


def stream_names() -> list[str]:
    """Names of the streams that come with the package."""
    return sorted(path.stem for path in CATALOGUE.glob("*.yaml"))


@cache
def packaged_archives() -> dict[str, Archive]:
    """The archives that every stream may name."""
    return {name: parse(Archive, entry, f"archive '{name}'") for name, entry in read_document(ARCHIVES).items()}


def read_definition(name: str) -> StreamDefinition:
    """Read a stream's YAML without reading its data.

    Args:
        name: A name of ``stream_names()`` or the path of a YAML file.

    Raises:
        HimalayaError: Unknown name, unreadable file, or a mistake in an entry.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CATALOGUE / f"{name}.yaml"
    if path.parent == CATALOGUE and name not in stream_names():
        raise unknown_name("stream", name, stream_names())
    here = f"stream {name}"
    content = parse(StreamFile, read_document(path), here)
    specs = tuple(_read_task(_entry(entry, here), here) for entry in content.tasks)
    repeated = [task for task, count in Counter(spec.name for spec in specs).items() if count > 1]
    if repeated:
        raise HimalayaError(f"stream {name} has two tasks named '{repeated[0]}'")
    return StreamDefinition(
        name=content.name or path.stem,
        description=content.description.strip(),
        tasks=specs,
        archives=packaged_archives() | content.archives,
        folder=path.parent,
    )


def fetch_stream(name: str, *, offline: bool = False) -> dict[str, Path]:
    """Bring every archive and every split on the hub into the cache; returns their names to their paths."""
    return _fetch(read_definition(name), offline)


def load_stream(name: str, *, limits: Limits | None = None, offline: bool = False) -> Stream:
    """Load a stream: fetch what is missing, read it, cut the splits.

    Args:
        name: A name of ``stream_names()`` or the path of the user's own YAML file.
        limits: Lowers the caps of every task. A lower limit takes the first training items of a higher one, and a
            stratified subset of its validation and test items: labels stay as frequent as they are.
        offline: Use cached archives and splits only.

    Raises:
        HimalayaError: Unknown name, a mistake in an entry, unusable data, an empty split.
    """
    return _load(read_definition(name), limits, offline)


def load_task(stream: str, task: str, *, limits: Limits | None = None, offline: bool = False) -> Task:
    """Load one task of a stream by name.

    Raises:
        HimalayaError: As ``load_stream``, or no such task in the stream.
    """
    definition = read_definition(stream)
    specs = {spec.name: spec for spec in definition.tasks}
    if task not in specs:
        raise unknown_name(f"task in stream {stream}", task, specs)
    return _load(replace(definition, tasks=(specs[task],)), limits, offline).tasks[0]


def origin_of(spec: TaskSpec, definition: StreamDefinition) -> tuple[str, str]:
    """Where a task's data comes from, and its licence."""
    hub, archive = spec.source.hub, definition.archives.get(spec.source.archive or "")
    if hub:
        return f"{hub.id} ({hub.config or 'default'}) at {hub.revision}: {', '.join(hub.splits)}", hub.licence
    files = ", ".join(spec.source.files)
    return (f"{archive.requirement}: {files}", archive.licence) if archive else (f"local files: {files}", OWN_DATA)


def _entry(entry: Any, here: str) -> Any:
    """A task's entry; ``like: stream/task`` starts from a task of a packaged stream and replaces what is given."""
    if not isinstance(entry, Mapping) or "like" not in entry:
        return entry
    stream, _, task = str(entry["like"]).partition("/")
    if stream not in stream_names():
        raise unknown_name(f"stream in 'like: {entry['like']}' of {here}", stream, stream_names())
    known = _packaged_entries(stream)
    if task not in known:
        raise unknown_name(f"task in 'like: {entry['like']}' of {here}", task, known)
    return _merged(_entry(known[task], here), {key: value for key, value in entry.items() if key != "like"})


@cache
def _packaged_entries(stream: str) -> Mapping[str, Any]:
    """The tasks of a packaged stream by name; one without a name of its own has that of the task it is like."""
    tasks = read_document(CATALOGUE / f"{stream}.yaml")["tasks"]
    return {one.get("name") or one["like"].partition("/")[2]: one for one in tasks}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``; mappings inside are merged, those in ``WHOLE`` and all else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = key not in WHOLE and isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _read_task(entry: Any, stream: str) -> TaskSpec:
    """Validate one entry of the ``tasks`` of a stream, which ``stream`` names in error messages."""
    named = isinstance(entry, Mapping) and "name" in entry
    here = f"task '{entry['name']}' of {stream}" if named else f"a task of {stream}"
    spec = parse(TaskSpec, entry, here)
    source = spec.source
    if (spec.kind == "classification") != bool(spec.label_of):
        raise HimalayaError(
            f"{here} is of kind '{spec.kind}'; labels belong to kind 'classification', which needs them"
        )
    if spec.label_noise and not spec.label_of:
        raise HimalayaError(f"{here} has 'label_noise' but no labels")
    if bool(source.files) == (source.hub is not None):
        raise HimalayaError(f"'source' of {here} needs 'files' or 'hub', what to read")
    if source.reader not in READERS:
        raise unknown_name(f"reader in {here}", source.reader, READERS)
    return spec


def _fetch(definition: StreamDefinition, offline: bool) -> dict[str, Path]:
    archives = definition.used_archives().items()
    paths = {name: packages.fetch_archive(one.requirement, one.sha256, offline=offline) for name, one in archives}
    return paths | fetch_splits(definition.tasks, offline=offline)


def _load(definition: StreamDefinition, limits: Limits | None, offline: bool) -> Stream:
    paths = _fetch(definition, offline)
    tasks = (
        _load_task(spec, paths.get(spec.source.archive or ""), definition.folder, limits or Limits())
        for spec in definition.tasks
    )
    return Stream(definition.name, tuple(tasks))


def _load_task(spec: TaskSpec, archive: Path | None, folder: Path, limits: Limits) -> Task:
    most = min((cap for cap in (spec.caps.train, limits.train) if cap is not None), default=None)
    caps = replace(spec.caps, train=most)
    skipped: Counter[str] = Counter()
    hub = spec.source.hub
    items = read_split(spec, hub, hub.train, skipped) if hub else read_items(spec, archive, folder, skipped)
    if hub and hub.held_out:
        splits = cut_given(items, read_split(spec, hub, hub.held_out, skipped), caps, skipped)
    else:
        splits = cut(items, caps, skipped=skipped, form=form_of(spec.source))
    for split, chosen in splits.items():
        if not chosen:
            sizes = ", ".join(f"{name} {len(items)}" for name, items in splits.items())
            counts = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
            bad = f"; skipped rows: {counts}" if counts else ""
            raise HimalayaError(
                f"split '{split}' of task '{spec.name}' is empty ({sizes} usable items{bad}); "
                "check its filters, length caps and limits"
            )
    for split in ("validation", "test"):
        splits[split] = stratified(splits[split], spec.labels, limits.of(split))
    splits["train"] = with_label_noise(splits["train"], spec.labels, spec.label_noise)
    hashes = {split: content_hash(chosen) for split, chosen in splits.items()}
    return Task(spec=spec, hashes=hashes, skipped=dict(skipped), **splits)
