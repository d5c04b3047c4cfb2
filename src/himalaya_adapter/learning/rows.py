"""The rows of a user's data: of a file, a folder, or a data set of the hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from himalaya_adapter.errors import HimalayaError, one_line, unknown_name
from himalaya_adapter.streams.readers import BadRow, Row, read_file
from himalaya_adapter.streams.readers.table import is_table

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")


def read_rows(data: str, split: str = "train") -> list[Row | BadRow]:
    """The rows of a file, of a folder that `datasets` has written or can read, or of a data set of the hub.

    Args:
        data: A path that ends in one of the table formats; a folder, whose tables are read as single ones are; or
            ``owner/name`` or ``owner/name:config``.
        split: Which split of a data set.

    Raises:
        HimalayaError: Nothing there, nothing that can be read, or no rows.
    """
    path, hub = Path(data), HUB_ID.fullmatch(data)
    is_path = path.parent.is_dir() or is_table(data)  # a slip in it is no stranger's data set
    if path.is_file():
        rows = list(read_file(path.read_bytes(), path.name))
    elif path.is_dir():
        on_disk = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        tables = {} if on_disk else _tables(path)
        rows = _of_tables(data, tables, split) if tables else _of_dataset(data, None, split, on_disk)
    elif hub and not is_path:
        rows = _of_dataset(hub["id"], hub["config"], split, on_disk=False)
    else:
        raise HimalayaError(f"there is no file {data}, nor is it the id of a data set on the hub (owner/name)")
    if not rows:
        raise HimalayaError(f"{data} has no rows")
    return rows


def _tables(folder: Path) -> Mapping[str, Sequence[str]]:
    """The files of each split of a folder; nothing if one is no table, or a card says how they are read."""
    from datasets.data_files import DataFilesDict, get_data_patterns  # slow to import

    card = folder / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace"):
        return {}
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder.resolve())), str(folder.resolve()))
    except FileNotFoundError:  # the folder is empty
        return {}
    return found if all(is_table(file) for files in found.values() for file in files) else {}


def _of_tables(name: str, tables: Mapping[str, Sequence[str]], split: str) -> list[Row | BadRow]:
    if split not in tables:
        raise unknown_name(f"split of {name}", split, map(str, tables))
    return [row for file in sorted({*tables[split]}) for row in read_file(Path(file).read_bytes(), Path(file).name)]


def _of_dataset(name: str, config: str | None, split: str, on_disk: bool) -> list[Row | BadRow]:
    import datasets  # slow to import

    try:
        found = datasets.load_from_disk(name) if on_disk else datasets.load_dataset(name, config)
    except Exception as error:  # errors of the library's own, of pyarrow, of the hub's client and of httpx
        raise HimalayaError(f"cannot read the data set {name}: {one_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise unknown_name(f"split of {name}", split, map(str, found))
        found = found[split]
    return list(found)
