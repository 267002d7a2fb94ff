"""What a file is by its first bytes, and how it is opened: gzip, parquet, JSON in its layouts.

A name can be wrong; the first bytes seldom are. What is no file of records at all, such as an
archive, a web page or a pointer of Git LFS, is named with what to do.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from helpers.data.fields import BadRecord, short
from helpers.data.json_text import Parser

HEAD_BYTES = 1_000_000
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_UNPACK = "unpack it first"
FOREIGN = (  # first bytes, what that is, what to do
    (b"PK\x03\x04", "a zip archive (or an .xlsx)", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (_GZIP + b"\x08", "packed with gzip twice", "unpack it once"),
    (b"ARROW1", "an Arrow file", "write it as parquet"),
    (b"SQLite format 3", "an SQLite data base", "export the table as JSON"),
    (b"%PDF", "a PDF", "give the records themselves"),
    (b"\x80\x04", "a Python pickle", "write the records as JSON: a pickle can run code"),
    (b"\x80\x05", "a Python pickle", "write the records as JSON: a pickle can run code"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "run git lfs pull"),
    (b"<!DOCTYPE", "a web page", "look at it: the download went to another page"),
    (b"<!doctype", "a web page", "look at it: the download went to another page"),
    (b"<html", "a web page", "look at it: the download went to another page"),
    (b"<?xml", "XML", "write the records as JSON"),
)
TABLES = (".csv", ".tsv", ".xlsx", ".xls")


def is_gzip(path: str) -> bool:
    """By its name, or by a whole header: method 8 and an operating system that there is."""
    if path.lower().endswith(".gz"):
        return True
    with open(path, "rb") as file:
        head = file.read(10)
    return head.startswith(_GZIP + b"\x08") and len(head) == 10 and head[9] in (*range(14), 255)


def is_parquet(path: str) -> bool:
    """By its name, or by the four bytes at both ends."""
    if path.lower().endswith(".parquet"):
        return True
    with open(path, "rb") as file:
        starts = file.read(4) == _PARQUET
        return starts and file.seek(-4, os.SEEK_END) > 0 and file.read(4) == _PARQUET


def open_bytes(path: str) -> BinaryIO:
    """The bytes of a file, unpacked where it is gzip, with `peek`."""
    return gzip.open(path) if is_gzip(path) else open(path, "rb")


def head_of(file: BinaryIO) -> bytes:
    """Up to a megabyte from the start, as far as it can be unpacked; the file is at 0 again."""
    parts, size = [], 0
    try:
        while size < HEAD_BYTES and (part := file.read1(8_192)):
            parts.append(part)
            size += len(part)
    except GZIP_ERRORS:
        pass
    file.seek(0)
    return b"".join(parts)


def foreign(path: str, head: bytes) -> BadRecord | None:
    """Why this is no file of JSON, where its first bytes or its name say so.

    None, too, where an object stands on a line of a text: then the lines are read one by one.
    """
    if b"\x00" not in head[:64] and _has_object_line(head):
        return None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for first, what, cure in FOREIGN:
        if start.startswith(first):
            return BadRecord("no_records", f"the file is {what}: {cure}")
    if head[257:262] == b"ustar":
        return BadRecord("no_records", f"the file is a tar archive: {_UNPACK}")
    if head[:4].strip(b"\x00") and head[:4].count(0) >= (1 if head[:1] in b"\xff\xfe" else 2):
        return BadRecord("bad_utf8", "byte 1 is not UTF-8: the file is UTF-16 or UTF-32; save it "
                                     "as UTF-8")
    name = path.lower().removesuffix(".gz")
    if name.endswith(TABLES) and not start.startswith((b"{", b"[")):
        return BadRecord("no_records", "the file is a table, not JSON: read it with pandas, and "
                                       "write it with to_json(orient='records', lines=True)")
    return None


def _has_object_line(head: bytes) -> bool:
    lines = head.split(b"\n", 1_000)[:1_000]
    return any(_object(line.decode("utf-8", "replace")) for line in lines if line[:1] == b"{")


# ---------------------------------------------------------------- the layout of JSON


def layout_of(path: str, head: bytes, is_record: Callable[[dict], bool]) -> str:
    """"lines", "array", "object" (around the records) or "values" (objects on many lines).

    Decided from the first megabyte, not by the name: many .json files hold JSON Lines.
    """
    text = head.decode("utf-8-sig", errors="replace").lstrip(" \t\r\n")
    is_json = path.lower().removesuffix(".gz").endswith(".json")
    if text.startswith("["):
        return "array" if is_json or _starts_an_array(text) else "lines"
    if not text.startswith("{"):
        return "lines"
    first, _, rest = text.partition("\n")
    is_line = _object(first) is not None
    if is_line and (rest.strip() or not is_json):
        return "lines"
    value = _object(text)
    if value is None:
        return _broken_layout(first, rest, text, is_json)
    if not is_record(value) and any(map(_is_list_of_objects, value.values())):
        return "object"
    return "lines" if is_line else "values"


def _broken_layout(first: str, rest: str, text: str, is_json: bool) -> str:
    """The layout of what starts as an object and cannot be parsed: cut by the megabyte, or bad."""
    is_document = is_json
    if rest.strip():
        next_line = rest.lstrip(" \t\r\n")
        is_document = not first.rstrip().endswith("}") and not next_line.startswith("{")
    if not is_document:
        return "lines"
    return "object" if re.search(r'^\{[^{]*"\s*:\s*\[\s*\{', text) else "values"


def _starts_an_array(text: str) -> bool:
    """Whether records stand in the array: a line of JSON Lines may be a list, too."""
    inside = text[1:].lstrip(" \t\r\n")
    try:
        _, end = Parser().value(inside)
    except ValueError:
        return inside.startswith(("{", "]")) and len(text) >= HEAD_BYTES // 2
    return inside.startswith("{") and inside[end:].lstrip(" \t\r\n")[:1] in (",", "]")


def _object(text: str) -> dict | None:
    """The object at the start of a text; None where there is no whole one."""
    try:
        value, _ = Parser().value(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


# ---------------------------------------------------------------- parquet


def parquet_rows(path: str) -> Iterator[Any]:
    """The rows as plain dicts, a few at a time; no copy is kept that could go stale."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                yield BadRecord("damaged_parquet", f"the column {short(twice[0])} stands twice, "
                                                   "and one would be lost: rename it")
                return
            for batch in file.iter_batches(batch_size=100):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        problem = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
        size = Path(path).stat().st_size
        yield BadRecord("damaged_parquet", f"from here on the {size:,} bytes are not a readable "
                                           f"parquet file ({problem})")
