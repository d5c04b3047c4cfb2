"""Tables: JSON lines, JSON arrays of objects, CSV, TSV and parquet, also compressed with gzip or bzip2."""

import bz2
import codecs
import csv
import gzip
import io
import re
from collections.abc import Iterator
from typing import Any

from himalaya_adapter.documents import once, parse_document
from himalaya_adapter.streams.readers.types import BadRow, Row

FORMATS = ".jsonl, .json, .csv, .tsv, .parquet, each also with .gz or .bz2"
NAMED = re.compile(r".*\.(jsonl|json|csv|tsv|parquet)(\.gz|\.bz2)?", re.IGNORECASE | re.DOTALL)
FIELDS = "other number of fields"


def is_table(name: str) -> bool:
    """Whether a file of this name would be read as a table."""
    return NAMED.fullmatch(name) is not None


def read_table(content: bytes, name: str) -> Iterator[Row | BadRow]:
    """Yield one row per record; the format follows from the ending of ``name``, in any case.

    A byte that is not UTF-8 becomes U+FFFD, so that the item it stands in can be reported or skipped.
    """
    kind = name.lower()
    if kind.endswith(".gz"):
        content, kind = gzip.decompress(content), kind.removesuffix(".gz")
    elif kind.endswith(".bz2"):
        content, kind = bz2.decompress(content), kind.removesuffix(".bz2")
    if kind.endswith(".parquet"):
        import pyarrow.parquet  # slow to import, and only parquet needs it

        yield from pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    elif kind.endswith((".csv", ".tsv")):
        yield from _csv_rows(_decoded(content), "\t" if kind.endswith(".tsv") else ",")
    elif kind.endswith(".jsonl"):
        yield from _objects(json_lines(_decoded(content), name))
    elif kind.endswith(".json"):
        yield from _objects(parse_document(_decoded(content), name, json_text=True))
    else:
        raise ValueError(f"known endings are {FORMATS}")


def json_lines(text: str, name: str) -> Iterator[Any]:
    """What stands in the lines of a file that are not empty, each as JSON."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield parse_document(line, f"line {number} of {name}", json_text=True)


def _objects(records: Any) -> Iterator[Row]:
    if not isinstance(records, list | Iterator):
        raise ValueError("it is not a list of objects")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(f"record {number} is not an object with named fields")
        yield record


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError("it is not UTF-8, but looks like UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig", errors="replace")


def _csv_rows(text: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Rows with the fields of the header; a quote that is not closed, or not at the end of its field, is an error."""
    csv.field_size_limit(len(text) + 1)  # else 131 072 characters
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        header = next(records, [])
        once(header)
        begin = records.line_num + 1
        for record in records:
            if record and len(record) != len(header):
                yield BadRow(FIELDS, f"(line {begin}) has {len(record)} fields, the header has {len(header)}")
            elif record:
                yield dict(zip(header, record, strict=True))
            begin = records.line_num + 1
    except csv.Error as error:
        raise ValueError(f"the record that begins in line {begin}: {error}") from error
