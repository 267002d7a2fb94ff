"""Files of records: JSON, JSONL, gzip, parquet or a hub name, read item by item and written whole.

`read_items` never raises for a bad item: it hands on a `BadRecord` in its place, so that the
caller can count it and go on.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import datasets
from datasets import Dataset, load_dataset

from helpers.data.fields import BadRecord, short

MAX_LINE_BYTES = 1_000_000
MAX_JSON_BYTES = 256_000_000
BLANK = object()  # a line without anything; the JSON value null is a bad record instead
_BOM = b"\xef\xbb\xbf"


class Item(NamedTuple):
    """A parsed record, or a BadRecord, or BLANK for a blank line, and where it stands.

    number counts from 1: lines of a JSONL file, records of anything else.
    """

    value: Any
    source: str
    number: int
    is_line: bool = True

    @property
    def place(self) -> str:
        return f"{self.source}:{self.number if self.is_line else f'record {self.number}'}"


# ---------------------------------------------------------------- reading


def read_items(
    sources: Iterable[str | Path], *, split: str = "train", max_line_bytes: int = MAX_LINE_BYTES,
    streaming: bool = False,
) -> Iterator[Item]:
    """Every item of every source, in order.

    split: of a hub data set. max_line_bytes: longer lines are skipped without being held in
    memory. streaming: read a hub data set as it arrives instead of keeping a copy of all of it.
    Raises FileNotFoundError, or ConnectionError for a hub that cannot be reached.
    """
    for source in map(str, sources):
        is_empty = True
        for item in _read_one(source, split, max_line_bytes, streaming):
            is_empty = is_empty and item.value is BLANK
            yield _as_object(item)
        if is_empty:
            yield Item(BadRecord("empty_file", "the file holds no record"), source, 1)


def _as_object(item: Item) -> Item:
    if item.value is BLANK or isinstance(item.value, dict | BadRecord):
        return item
    problem = f"here stands {short(item.value)}, not an object with fields"
    return item._replace(value=BadRecord("not_an_object", problem))


def _read_one(source: str, split: str, max_line_bytes: int, streaming: bool) -> Iterator[Item]:
    path = Path(source)
    if path.is_dir():
        raise FileNotFoundError(f"{source} is a folder; name one file in it.")
    if not path.exists():
        yield from _numbered(_hub_rows(source, split, streaming), source)
    elif source.lower().endswith(".parquet"):
        yield from _numbered(_parquet_rows(source), source)
    else:
        yield from _file_items(source, max_line_bytes)


def _numbered(values: Iterable[Any], source: str) -> Iterator[Item]:
    for number, value in enumerate(values, 1):
        yield Item(value, source, number, is_line=False)


def _file_items(source: str, max_line_bytes: int) -> Iterator[Item]:
    name, number = source.lower(), 0
    opener = gzip.open if name.endswith(".gz") else open
    try:
        with opener(source, "rb") as file:
            is_array = name.removesuffix(".gz").endswith(".json") and _starts_with_bracket(file)
            values = _array_values(file) if is_array else _line_values(file, max_line_bytes)
            for number, value in enumerate(values, 1):
                yield Item(value, source, number, is_line=not is_array)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"the gzip file is damaged or ends early ({error})"
        yield Item(BadRecord("damaged_gzip", problem), source, number + 1)


def _starts_with_bracket(file: BinaryIO) -> bool:
    """Whether a .json file is one array; many are JSONL under another name."""
    start = file.read(4096).removeprefix(_BOM).lstrip()
    file.seek(0)
    return start.startswith(b"[")


def _array_values(file: BinaryIO) -> Iterator[Any]:
    content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        problem = f"over {MAX_JSON_BYTES:,} bytes in one JSON array; make it JSONL"
        yield BadRecord("huge_file", problem)
        return
    values = _parse(content, is_torn=True)
    yield from [values] if isinstance(values, BadRecord) else values


def _line_values(file: BinaryIO, max_bytes: int) -> Iterator[Any]:
    """JSON values line by line, never holding more than max_bytes of a line."""
    while line := file.readline(max_bytes + 1):
        is_huge = len(line) > max_bytes and not line.endswith(b"\n")
        while is_huge and line and not line.endswith(b"\n"):
            line = file.readline(max_bytes)
        if is_huge:
            yield BadRecord("huge_line", f"the line is over {max_bytes:,} bytes")
        elif not line.removeprefix(_BOM).strip():
            yield BLANK
        else:
            yield _parse(line, is_torn=not line.endswith(b"\n"))


def _parse(content: bytes, *, is_torn: bool) -> Any:
    """The JSON value, or the BadRecord that says why there is none."""
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique_fields)
    except BadRecord as bad:
        return bad
    except UnicodeDecodeError as error:
        if is_torn and error.reason == "unexpected end of data":
            return BadRecord("torn_last_line", "the file ends inside a character")
        return BadRecord("bad_utf8", f"byte {error.start + 1} is not UTF-8")
    except json.JSONDecodeError as error:
        if is_torn:
            return BadRecord("torn_last_line", f"the file ends inside a record ({error.msg})")
        return BadRecord("bad_json", f"column {error.colno}: {error.msg}")
    except (ValueError, RecursionError):  # an integer of thousands of digits; 100,000 brackets
        return BadRecord("bad_json", "a number is too long or the nesting is too deep")


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object; of a name that stands twice the parser would keep one value in silence."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRecord("duplicate_field", f"the field {short(twice, 30)} stands there twice")
    return fields


def _parquet_rows(path: str) -> Iterator[Any]:
    try:
        yield from Dataset.from_parquet(path)
    except Exception as error:  # datasets raises its own kinds for a file that is not parquet
        problem = f"not a readable parquet file ({str(error).splitlines()[0]})"
        yield BadRecord("damaged_parquet", problem)


def _hub_rows(source: str, split: str, streaming: bool) -> Iterator[dict]:
    """The rows of a hub data set, "owner/name" or "owner/name:configuration"."""
    looks_like_file = re.search(r"\.(json|jsonl|gz|parquet|csv|txt)$", source.lower())
    if looks_like_file or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source):
        raise FileNotFoundError(f"There is no file {source}.")
    name, _, configuration = source.partition(":")
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        # Offline there is only an earlier download, which a stream would not look for.
        yield from load_dataset(name, configuration or None, split=split,
                                streaming=streaming and not offline)
    except Exception as error:
        reason = " ".join(str(error).splitlines()[:2]).rstrip(". ") or type(error).__name__
        hub = ("unset HF_HUB_OFFLINE" if offline else
               "set HF_HUB_OFFLINE=1 to use an earlier download")
        raise ConnectionError(
            f"The data set {source} (split {split}) could not be loaded from the hub ({reason}): "
            f"set HF_ENDPOINT to a mirror, {hub}, or give the path of a local copy (JSONL, JSON, "
            "gzip or parquet) instead of the name."
        ) from error


# ---------------------------------------------------------------- writing

WRITTEN = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def check_written(path: str | Path) -> Path:
    """The path, if its name says how records are to be written there."""
    if not str(path).lower().endswith(WRITTEN):
        raise ValueError(f"Name a file to write that ends in {', '.join(WRITTEN)}, not {path}.")
    return Path(path)


def write_records(path: str | Path, records: Iterable[dict]) -> int:
    """Write records as the file's name says (JSONL, JSON array, gzip, parquet); how many they are.

    Written beside and renamed: where it fails, `path` is as it was. A parquet file has the columns
    of all records, with None where a record lacks one.
    """
    path = check_written(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        writer = _write_parquet if path.name.lower().endswith(".parquet") else _write_json
        count = writer(beside, records)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _write_parquet(path: Path, records: Iterable[dict]) -> int:
    records = list(records)
    columns = dict.fromkeys(name for record in records for name in record)
    rows = [{name: record.get(name) for name in columns} for record in records]
    Dataset.from_list(rows).to_parquet(str(path))
    return len(rows)


def _write_json(path: Path, records: Iterable[dict]) -> int:
    """One object a line; in a .json file brackets and commas make one array of the lines."""
    name, count = path.name.lower(), 0
    opener = gzip.open if name.endswith(".gz") else open
    is_array = name.removesuffix(".gz").endswith(".json")
    with opener(path, "wt", encoding="utf-8", newline="\n") as file:
        for count, record in enumerate(records, 1):
            between = ("[\n" if count == 1 else ",\n") if is_array else ""
            end = "" if is_array else "\n"
            file.write(between + json.dumps(record, ensure_ascii=False) + end)
        if is_array:
            file.write("\n]\n" if count else "[]\n")
    return count
