"""Data sets of the Hugging Face hub: each split is fetched once as parquet into the cache, then read in batches."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.storage import beside, cache_folder
from himalaya_adapter.streams.readers.types import Row
from himalaya_adapter.streams.task import HubSource, TaskSpec

MIRROR_VARIABLE = "HIMALAYA_HUB_MIRROR"
BATCH = 1000  # rows in memory at a time
WAIT_SECONDS = 10
WITHOUT_HUB = "package_stream_25"


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
        HimalayaError: Offline or no hub, with the names of the tasks that are missing; no such data set, revision,
            split or column.
    """
    sources = [(task.name, task.source.hub) for task in tasks if task.source.hub]
    missing = [name for name, hub in sources if not all(split_path(hub, split).is_file() for split in hub.splits)]
    if missing and (offline or not _is_reachable()):
        reason = "offline use was asked for" if offline else "the Hugging Face hub cannot be reached"
        raise HimalayaError(
            f"the data of {', '.join(missing)} is neither in the cache nor in ${MIRROR_VARIABLE}, and {reason}; "
            f"the stream {WITHOUT_HUB} needs no hub"
        )
    paths = {}
    with Progress(console=Console(stderr=True), disable=not missing) as progress:
        bar = progress.add_task("", total=len(sources))
        for name, hub in sources:
            for split in hub.splits:
                progress.update(bar, description=f"{name}: {hub.id}, {split}")
                path = split_path(hub, split)
                if not path.is_file():
                    _download(hub, split, path)
                paths[f"{hub.id} {hub.config or 'default'} {split}"] = path
            progress.advance(bar)
    return paths


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
        _check_columns(source, split, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH, columns=source.columns):
            for row in batch.to_pylist():
                yield {field: _value(row, place, source) for field, place in source.fields.items()}


def _row_limit(source: HubSource, split: str) -> int | None:
    return source.rows if split == source.train else None


def _is_reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=WAIT_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True


def _download(source: HubSource, split: str, path: Path) -> None:
    """Stream a split into a parquet file that appears when it is whole."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    limit = _row_limit(source, split)
    try:
        rows = datasets.load_dataset(
            source.id, source.config, split=split, revision=source.revision, streaming=True
        ).with_format("arrow")
        tables = (rows.take(limit) if limit else rows).iter(BATCH)
        first = next(tables)
        _check_columns(source, split, first.column_names)
        schema = first.select(source.columns).schema
        with beside(path) as temporary:
            with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
                writer.write_table(first.select(source.columns))
                for table in tables:
                    writer.write_table(table.select(source.columns).cast(schema))
            os.replace(temporary, path)
    except HimalayaError:
        raise
    except StopIteration as error:
        raise HimalayaError(f"split '{split}' of {source.id} on the hub has no rows") from error
    except Exception as error:  # the library raises errors of its own, of pyarrow, of the hub's client and of httpx
        raise HimalayaError(
            f"cannot fetch split '{split}' of {source.id} ({source.config or 'default'}, revision {source.revision}): "
            f"{one_line(error) or type(error).__name__}"
        ) from error


def _check_columns(source: HubSource, split: str, known: Sequence[str]) -> None:
    for column in source.columns:
        if column not in known:
            raise unknown_name(f"column in split '{split}' of {source.id}", column, known)


def _value(row: Row, place: str, source: HubSource) -> Any:
    """What stands at a path of a row; ``None`` if a value on the way is, or a list is too short."""
    column, *steps = place.split(".")
    value = row[column]
    for step in steps:
        if value is None:
            return None
        if isinstance(value, list):
            value = _of_list(value, step, place, source)
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            known = value if isinstance(value, dict) else ()
            raise unknown_name(f"step in the path '{place}' of {source.id}", step, known)
    return value


def _of_list(values: list[Any], step: str, place: str, source: HubSource) -> Any:
    if None in values and not step.isdigit():
        return None
    if step == "joined":
        return " ".join(map(str, values))
    if step == "lettered":
        return "\n".join(f"{chr(ord('A') + index)}. {value}" for index, value in enumerate(values))
    if step.isdigit():
        return values[int(step)] if int(step) < len(values) else None
    raise unknown_name(f"step in the path '{place}' of {source.id}", step, ("joined", "lettered", "0"))
