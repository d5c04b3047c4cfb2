"""Tables: JSON lines, JSON arrays of objects, CSV, TSV and parquet, also compressed with gzip or bzip2."""

import bz2
import codecs
import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from himalaya_adapter.errors import HimalayaError, one_line
from himalaya_adapter.streams.readers.types import BadRow, Row

FORMATS = ".jsonl, .json, .csv, .tsv, .parquet, each also with .gz or .bz2"
FIELDS = "other number of fields"


def read_table(content: bytes, name: str, options: Mapping[str, Any]) -> Iterator[Row | BadRow]:
    """Yield one row per record; the format follows from the ending of ``name``. Takes no options.

    A byte that is not UTF-8 becomes U+FFFD, so that the item it stands in can be reported or skipped.

    Raises:
        HimalayaError: The file as a whole cannot be read: a quote that is not closed, two columns of one name.
    """
    file = name
    try:
        if name.endswith(".gz"):
            content, name = gzip.decompress(content), name.removesuffix(".gz")
        elif name.endswith(".bz2"):
            content, name = bz2.decompress(content), name.removesuffix(".bz2")
        if name.endswith(".parquet"):
            yield from _parquet_rows(content)
        elif name.endswith((".csv", ".tsv")):
            yield from _csv_rows(_decoded(content), "\t" if name.endswith(".tsv") else ",")
        elif name.endswith((".jsonl", ".json")):
            yield from _json_rows(_decoded(content), name)
        else:
            raise HimalayaError(f"no table format for '{name}'; known endings: {FORMATS}")
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        if isinstance(error, HimalayaError):
            raise
        raise HimalayaError(f"cannot read table {file}: {one_line(error)}") from error


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError("it is not UTF-8, but looks like UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig", errors="replace")


def _parquet_rows(content: bytes) -> Iterator[Row]:
    import pyarrow.parquet  # slow to import, and only parquet needs it

    try:
        yield from pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _csv_rows(text: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Rows with the fields of the header; a quote that is not closed, or not at the end of its field, is an error."""
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        header = next(records, [])
        _check_once(header, "column")
        begin = records.line_num + 1
        for record in records:
            if record and len(record) != len(header):
                yield BadRow(FIELDS, f"(line {begin}) has {len(record)} fields, the header has {len(header)}")
            elif record:
                yield dict(zip(header, record, strict=True))
            begin = records.line_num + 1
    except csv.Error as error:
        raise ValueError(f"the record that begins in line {begin}: {error}") from error


def _json_rows(text: str, name: str) -> Iterator[Row]:
    records = _parsed(text) if name.endswith(".json") else _json_lines(text)
    if isinstance(records, dict | str | int | float | None):
        raise ValueError("it is not a list of objects")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise HimalayaError(f"{name}: record {number} is not an object with named fields")
        yield record


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _parsed(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _parsed(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once([key for key, _ in pairs], "field")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _check_once(names: list[str], what: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"it has {count} {what}s named '{name}'")
