"""Files of records: JSON, JSONL, gzip, parquet or a hub name, read item by item and written whole.

`read_items` never raises for a bad item: it hands on a `BadRecord` in its place, so that the
caller can count it and go on.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import datasets
from datasets import Dataset, load_dataset

from helpers.atomic import flush, naming
from helpers.data import json_text
from helpers.data.containers import (
    GZIP_ERRORS,
    foreign,
    head_of,
    is_parquet,
    layout_of,
    open_bytes,
    parquet_rows,
)
from helpers.data.fields import BadRecord, short
from helpers.data.json_lines import Blank, line_values
from helpers.data.json_text import Note, Window
from helpers.text_files import regular_file

MAX_LINE_BYTES = 1_000_000


class Item(NamedTuple):
    """A parsed record, a BadRecord, a Note on the file, or Blank lines, and where it stands.

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
    streaming: bool = False, is_record: Callable[[dict], bool] = lambda value: False,
) -> Iterator[Item]:
    """Every item of every source, in order.

    split: of a hub data set. max_line_bytes: longer lines are skipped without being held in
    memory. streaming: read a hub data set as it arrives instead of keeping a copy of all of it.
    is_record: whether the only object of a file is a record itself, not an object around records.
    Raises FileNotFoundError or OSError for what is no file, ConnectionError for a hub that cannot
    be reached.
    """
    before: set[str] = set()
    for source in map(str, sources):
        path = os.path.realpath(source) if os.path.exists(source) else source
        if path in before:
            yield Item(Note("the file is given twice, and its records are read twice"), source, 1)
        before.add(path)
        is_empty, shown = True, source.encode("utf-8", "backslashreplace").decode()
        for item in _read_one(source, split, max_line_bytes, streaming, is_record):
            is_empty = is_empty and isinstance(item.value, Blank | Note)
            yield _as_object(item if shown == source else item._replace(source=shown))
        if is_empty:
            yield Item(BadRecord("empty_file", "the file holds no record"), shown, 1)


def _as_object(item: Item) -> Item:
    if isinstance(item.value, Blank | Note | dict | BadRecord):
        return item
    problem = f"here stands {short(item.value)}, not an object with fields"
    return item._replace(value=BadRecord("not_an_object", problem))


def _read_one(source: str, split: str, max_line_bytes: int, streaming: bool,
              is_record: Callable[[dict], bool]) -> Iterator[Item]:
    if _is_hub_name(source):
        yield from _numbered(_hub_rows(source, split, streaming), source)
        return
    if not os.path.lexists(source) and (why := _no_path(source)):
        raise FileNotFoundError(f"There is no file {short(source, 200)}: {why}.")
    regular_file(source)
    if is_parquet(source):
        yield from _numbered(parquet_rows(source), source)
    else:
        yield from _file_items(source, max_line_bytes, is_record)


def _is_hub_name(source: str) -> bool:
    """ "owner/name" or "owner/name:configuration", where no file or folder of that name stands."""
    looks_like_file = re.search(r"\.(json|jsonl|gz|parquet|csv|txt)$", source.lower())
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source)
    return bool(is_name and not looks_like_file and not os.path.lexists(source))


def _no_path(source: str) -> str:
    """What somebody gave in the place of a path, and what to give; "" for a mere wrong path."""
    if re.match(r"\w+://", source):
        return "it is an address; download it, and give the file"
    if re.search(r"[*?\[]", source) and source.isprintable() and len(source) < 200:
        return "a pattern stands for no file here; give the files themselves, in a list"
    return "the home folder is written out here" if source.startswith("~") else ""


def _numbered(values: Iterable[Any], source: str) -> Iterator[Item]:
    number = 1
    for value in values:
        yield Item(value, source, number, is_line=False)
        number += not isinstance(value, Note)


def _file_items(source: str, max_line_bytes: int,
                is_record: Callable[[dict], bool]) -> Iterator[Item]:
    item = None
    try:
        with open_bytes(source) as file:
            head = head_of(file)
            if (problem := foreign(source, head)) is not None:
                yield Item(problem, source, 1)
                return
            layout = layout_of(source, head, is_record)
            for item in (_line_items(file, source, max_line_bytes) if layout == "lines" else
                         _numbered(_document_values(file, layout), source)):
                yield item
    except GZIP_ERRORS as error:
        number = item.number + 1 if item else 1
        problem = f"the gzip file is damaged or ends early ({error})"
        yield Item(BadRecord("damaged_gzip", problem), source, number)


def _document_values(file: BinaryIO, layout: str) -> Iterator[Any]:
    """The values of a file that is not read by lines, up to the first fault of its form."""
    window = Window(file)
    read = {"array": json_text.array_values, "object": json_text.object_values,
            "values": json_text.following_values}[layout]
    try:
        yield from read(window)
        if window.peek():
            yield BadRecord("bad_json", f"{window.place(window.at)}: more text stands behind the "
                                        f"{layout}, and is not read")
    except BadRecord as bad:
        yield BadRecord(bad.kind, f"{bad}; what follows is not read")


def _line_items(file: BinaryIO, source: str, max_line_bytes: int) -> Iterator[Item]:
    number = 1
    for value, lines in line_values(file, max_line_bytes):
        yield Item(value, source, number)
        number += lines


def _hub_rows(source: str, split: str, streaming: bool) -> Iterator[dict]:
    """The rows of a hub data set, "owner/name" or "owner/name:configuration"."""
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
        with naming(path):
            count = writer(beside, records)
            flush(beside)
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
            try:
                text = json.dumps(record, ensure_ascii=False, allow_nan=False)
                text.encode("utf-8")
            except ValueError as error:  # NaN, or half a surrogate pair: no reader would take it
                raise ValueError(f"Record {count} cannot be written as JSON: {error}.") from error
            file.write(between + text + end)
        if is_array:
            file.write("\n]\n" if count else "[]\n")
    return count
