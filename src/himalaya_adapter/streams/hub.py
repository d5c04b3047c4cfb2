"""Data sets of the Hugging Face hub: each split is fetched once as parquet into the cache, then read in batches."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.storage import beside, cache_folder
from himalaya_adapter.streams.readers.types import Row
from himalaya_adapter.streams.task import HubSource, TaskSpec

MIRROR_VARIABLE = "HIMALAYA_HUB_MIRROR"
BATCH = 1000  # rows in memory at a time
WITHOUT_HUB = "the stream package_stream_25 needs no hub"


def split_path(source: HubSource, split: str) -> Path:
    """Where the parquet file of a split lies: in the user's mirror if it is there, else in the cache.

    A mirror is the folder ``$HIMALAYA_HUB_MIRROR`` with files ``<id>/<config or default>/<split>.parquet``.
    """
    config = source.config or "default"
    mirrored = Path(os.environ.get(MIRROR_VARIABLE) or "") / source.id / config / f"{split}.parquet"
    if os.environ.get(MIRROR_VARIABLE) and mirrored.is_file():
        return mirrored
    part = hashlib.sha256(f"{source.columns} {_row_limit(source, split)}".encode()).hexdigest()[:8]
    folder = f"{source.id.replace('/', '--')}@{source.revision.replace('/', '--')}"
    return cache_folder() / "hub" / folder / config / f"{split}-{part}.parquet"


def fetch_splits(tasks: Sequence[TaskSpec], *, offline: bool = False) -> dict[str, Path]:
    """Bring the splits of the tasks' data sets into the cache; returns what they are to where they lie.

    A split enters the cache whole, so a fetch that was interrupted goes on with the split that it was at. Nothing of
    a data set is run. Only the columns and rows that a task reads are stored.

    Raises:
        HimalayaError: Offline, with the names of the tasks that are missing; no hub, or no such data set, revision,
            split or column there.
    """
    splits = [(task.name, hub, split) for task in tasks if (hub := task.source.hub) for split in hub.splits]
    missing = {path: one for one in splits if not (path := split_path(*one[1:])).is_file()}
    if missing and offline:
        names = ", ".join(dict.fromkeys(name for name, _, _ in missing.values()))
        raise HimalayaError(
            f"the data of {names} is neither in the cache nor in ${MIRROR_VARIABLE}, and offline use was asked for; "
            f"{WITHOUT_HUB}"
        )
    console = Console(stderr=True)
    for path in track(missing, "data sets of the hub", console=console, disable=not missing):
        _download(*missing[path][1:], path)
    return {f"{hub.id} {hub.config or 'default'} {split}": split_path(hub, split) for _, hub, split in splits}


def hub_rows(source: HubSource, split: str) -> Iterator[Row]:
    """Yield the rows of a fetched split, with the fields that the source names; memory does not grow with the rows.

    Raises:
        HimalayaError: A column or a part of a path is not there; the file is not parquet.
    """
    import pyarrow
    import pyarrow.parquet  # slow to import

    path = split_path(source, split)
    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)  # a buffer would keep all that was read
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise HimalayaError(f"cannot read {path}: {one_line(error)}; delete it and fetch again") from error
    with file:
        known = file.schema_arrow.names
        if missing := [column for column in source.columns if column not in known]:  # from the user's own mirror
            raise unknown_name(f"column in split '{split}' of {source.id}", missing[0], known)
        rows = (row for batch in file.iter_batches(BATCH, columns=source.columns) for row in batch.to_pylist())
        for row in itertools.islice(rows, _row_limit(source, split)):  # a file of the user's mirror may hold more
            yield {field: _value(row, place, source) for field, place in source.fields.items()}


def _row_limit(source: HubSource, split: str) -> int | None:
    return source.rows if split == source.train else None


def _download(source: HubSource, split: str, path: Path) -> None:
    """Stream a split into a parquet file that appears when it is whole."""
    import datasets
    import pyarrow.parquet

    limit = _row_limit(source, split)
    try:
        rows = datasets.load_dataset(source.id, source.config, split=split, revision=source.revision, streaming=True)
        rows = rows.select_columns(source.columns).with_format("arrow")
        tables = (rows.take(limit) if limit else rows).iter(BATCH)
        first = next(tables, None)
        if first is None:
            raise HimalayaError("the split has no rows")
        with beside(path) as temporary:
            with pyarrow.parquet.ParquetWriter(temporary, first.schema) as writer:
                for table in itertools.chain([first], tables):
                    writer.write_table(table.cast(first.schema))
            os.replace(temporary, path)
    except Exception as error:  # the library raises errors of its own, of pyarrow, of the hub's client and of httpx
        raise HimalayaError(
            f"cannot fetch split '{split}' of {source.id} ({source.config or 'default'}, revision {source.revision}): "
            f"{one_line(error) or type(error).__name__}; {WITHOUT_HUB}"
        ) from error


def _value(row: Row, place: str, source: HubSource) -> Any:
    """What stands at a path of a row; ``None`` if a value on the way is, or a list is too short."""
    value: Any = row
    for step in place.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        elif isinstance(value, list) and step in OF_LISTS:
            value = None if None in value else OF_LISTS[step](value)
        elif value is not None:
            known = ["0", *OF_LISTS] if isinstance(value, list) else value if isinstance(value, dict) else ()
            raise unknown_name(f"step in the path '{place}' of {source.id}", step, known)
    return value


def _joined(values: list[Any]) -> str:
    return " ".join(map(str, values))


def _lettered(values: list[Any]) -> str:
    return "\n".join(f"{chr(ord('A') + index)}. {value}" for index, value in enumerate(values))


OF_LISTS: dict[str, Callable[[list[Any]], str]] = {"joined": _joined, "lettered": _lettered}
