"""Tables: JSON lines, JSON arrays of objects, CSV, TSV and parquet, also compressed with gzip or bzip2."""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.streams.readers.types import Row

FORMATS = ".jsonl, .json, .csv, .tsv, .parquet, each also with .gz or .bz2"


def read_table(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one row per record; the format follows from the ending of ``name``. Takes no options.

    A byte that is not UTF-8 becomes U+FFFD, so that the item it stands in can be reported or skipped.
    """
    try:
        if name.endswith(".gz"):
            content, name = gzip.decompress(content), name.removesuffix(".gz")
        elif name.endswith(".bz2"):
            content, name = bz2.decompress(content), name.removesuffix(".bz2")
        yield from _rows(content, name)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        if isinstance(error, HimalayaError):
            raise
        raise HimalayaError(f"cannot read table {name}: {' '.join(str(error).split())}") from error


def _rows(content: bytes, name: str) -> Iterator[Row]:
    if name.endswith(".parquet"):
        import pyarrow.parquet  # slow to import, and only parquet needs it

        yield from pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    elif name.endswith((".csv", ".tsv")):
        text = io.StringIO(content.decode("utf-8-sig", errors="replace"), newline="")
        yield from csv.DictReader(text, delimiter="\t" if name.endswith(".tsv") else ",")
    elif name.endswith((".jsonl", ".json")):
        text_lines = content.decode("utf-8-sig", errors="replace")
        records = json.loads(text_lines) if name.endswith(".json") else _json_lines(text_lines)
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                raise HimalayaError(f"{name}: record {number} is not an object with named fields")
            yield record
    else:
        raise HimalayaError(f"no table format for '{name}'; known endings: {FORMATS}")


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
