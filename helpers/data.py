"""Read records from files or the hub into `datasets.Dataset` columns that are always the same.

`load_records` returns the data and a `LoadReport`. A bad record is named with file and line,
counted, and left out; the rest goes on. Each record format is one small function that turns one
raw record into one canonical row, or raises `BadRecord`; `FORMATS` lists them.

| format | a raw record | canonical columns (besides id) |
|---|---|---|
| gsm8k | {"question": "2 + 2?", "answer": "2 + 2 = 4\\n#### 4"} | question, answer, gold_answer |
| qa | {"question": "..", "passages": ["..", ".."], "answers": ["Nile"]} | the same three |
| prompt_response | {"prompt": "Say hi.", "response": "Hi."} | prompt, response |
| prompt_answer | {"prompt": "Say hi.", "answer": "Hi."} | prompt, response |
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datasets import Dataset, load_dataset

from helpers.fields import BadRecord, checked_text, short
from helpers.formats import FORMATS, Format, format_of, to_preference

__all__ = ["FORMATS", "BadRecord", "Format", "LoadReport", "format_of", "load_records",
           "to_preference"]

MAX_LINE_BYTES = 1_000_000
MAX_JSON_BYTES = 256_000_000
MAX_PROBLEMS_KEPT = 50
_BOM = b"\xef\xbb\xbf"


@dataclass
class LoadReport:
    """What was read and what was left out. `problems` keeps the first 50 as "file:line: why"."""

    num_records: int = 0
    blank_lines: int = 0
    bad_by_kind: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        return self.bad_by_kind.total()

    def add(self, place: str, bad: BadRecord) -> None:
        self.bad_by_kind[bad.kind] += 1
        if len(self.problems) < MAX_PROBLEMS_KEPT:
            self.problems.append(f"{place}: {bad}")

    def as_dict(self) -> dict[str, Any]:
        return {"num_records": self.num_records, "num_bad": self.num_bad,
                "bad_by_kind": dict(self.bad_by_kind), "blank_lines": self.blank_lines,
                "problems": list(self.problems)}


def load_records(
    source: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    limit: int | None = None,
    keep: Sequence[str] = (),
    split: str = "train",
    max_line_bytes: int = MAX_LINE_BYTES,
) -> tuple[Dataset, LoadReport]:
    """Load a file, several files, or a hub data set into canonical columns.

    source: .json (an array), .jsonl, either with .gz, .parquet, or a hub name such as
        "openai/gsm8k:main" (the part after the colon is the configuration).
    format: a name of FORMATS; "auto" takes the first one that a record fits, then keeps to it.
    limit: stop after so many good records. keep: further fields to carry along (None where a
    record lacks one). split: of a hub data set. max_line_bytes: longer lines are skipped without
    being held in memory.

    Returns the data set (columns `id` and those of the format) and the report.
    Raises ValueError where nothing usable is left, FileNotFoundError, or ConnectionError for a
    hub that cannot be reached; each in one sentence.

    Example:
        >>> data, report = load_records("problems.jsonl", limit=200)     # doctest: +SKIP
        >>> data[0]["gold_answer"], report.num_bad                       # doctest: +SKIP
        ('72', 0)
    """
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"There is no record format {format!r}; known: {', '.join(FORMATS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, but it is {limit}.")
    sources = [source] if isinstance(source, str | Path) else list(source)
    report, rows, ids = LoadReport(), [], set()
    chosen = None if format == "auto" else format
    for raw in _read_all(sources, split, max_line_bytes, report):
        try:
            chosen = chosen or format_of(raw.record)
            row = {"id": _record_id(raw, ids), **FORMATS[chosen].convert(raw.record)}
            rows.append({name: raw.record.get(name) for name in keep} | row)
            ids.add(row["id"])
        except BadRecord as bad:
            report.add(raw.place, bad)
        if len(rows) == limit:
            break
    report.num_records = len(rows)
    if not rows:
        why = report.problems[0] if report.problems else f"{sources}: nothing to read"
        raise ValueError(f"No usable record ({report.num_bad} bad). {why}")
    return _to_dataset(rows), report


def _to_dataset(rows: list[dict]) -> Dataset:
    try:
        return Dataset.from_list(rows)
    except (ValueError, TypeError, OverflowError) as error:  # Arrow wants one type in each column
        raise ValueError(f"The kept fields do not have one type in all records: {error}.") from None


# ---------------------------------------------------------------- reading


class _Raw(NamedTuple):
    record: dict
    source: str
    line: int

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"


def _record_id(raw: _Raw, taken: set[str]) -> str:
    """The record's own id, or one from file and line; an id met before gets its place added.

    Two problems under one id would be counted as two samples of one problem.
    """
    own = raw.record.get("id")
    is_usable = isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip()
    name = checked_text(str(own), "id") if is_usable else f"{Path(raw.source).stem}-{raw.line}"
    return f"{name}@{raw.place}" if name in taken else name


def _read_all(
    sources: Iterable[str | Path], split: str, max_line_bytes: int, report: LoadReport
) -> Iterator[_Raw]:
    """Every raw record of every source that is an object; the others go into the report."""
    for source in map(str, sources):
        is_empty = True
        for line, item in _read_one(source, split, max_line_bytes):
            if item is None:
                report.blank_lines += 1
                continue
            is_empty = False
            if isinstance(item, dict):
                yield _Raw(item, source, line)
            elif isinstance(item, BadRecord):
                report.add(f"{source}:{line}", item)
            else:
                report.add(f"{source}:{line}", BadRecord(
                    "not_an_object", f"the line holds {short(item)}, not an object with fields"))
        if is_empty:
            report.add(f"{source}:1", BadRecord("empty_file", "the file holds no record"))


def _read_one(source: str, split: str, max_line_bytes: int) -> Iterator[tuple[int, Any]]:
    """Pairs (line from 1, parsed value | BadRecord | None for a blank line) of one source."""
    path, name = Path(source), source.lower()
    if path.is_dir():
        raise FileNotFoundError(f"{source} is a folder; name one file in it.")
    if not path.exists():
        yield from enumerate(_hub_rows(source, split), 1)
    elif name.endswith(".parquet"):
        yield from enumerate(_parquet_rows(source), 1)
    else:
        yield from _file_items(path, max_line_bytes)


def _file_items(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Any]]:
    name, line = path.name.lower(), 0
    opener = gzip.open if name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            is_array = name.removesuffix(".gz").endswith(".json") and _starts_with_bracket(file)
            for line, item in _array_items(file) if is_array else _lines(file, max_line_bytes):
                yield line, item
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"the gzip file is damaged or ends early ({error})"
        yield line + 1, BadRecord("damaged_gzip", problem)


def _starts_with_bracket(file: BinaryIO) -> bool:
    """Whether a .json file is one array; many are JSONL under another name."""
    start = file.read(4096).removeprefix(_BOM).lstrip()
    file.seek(0)
    return start.startswith(b"[")


def _array_items(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        problem = f"over {MAX_JSON_BYTES:,} bytes in one JSON array; make it JSONL"
        yield 1, BadRecord("huge_file", problem)
        return
    items = _parse(content, is_torn=True)
    yield from enumerate([items] if isinstance(items, BadRecord) else items, 1)


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """JSON values line by line, never holding more than max_bytes of a line."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        is_huge = len(line) > max_bytes and not line.endswith(b"\n")
        while is_huge and line and not line.endswith(b"\n"):
            line = file.readline(max_bytes)
        if is_huge:
            yield number, BadRecord("huge_line", f"the line is over {max_bytes:,} bytes")
        elif not line.removeprefix(_BOM).strip():
            yield number, None
        else:
            yield number, _parse(line, is_torn=not line.endswith(b"\n"))


def _parse(content: bytes, *, is_torn: bool) -> Any:
    """The JSON value, or the BadRecord that says why there is none."""
    try:
        return json.loads(content.removeprefix(_BOM).decode("utf-8"))
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


def _parquet_rows(path: str) -> Iterator[dict]:
    try:
        yield from Dataset.from_parquet(path)
    except Exception as error:  # datasets raises its own kinds for a file that is not parquet
        problem = f"not a readable parquet file ({str(error).splitlines()[0]})"
        yield BadRecord("damaged_parquet", problem)


def _hub_rows(source: str, split: str) -> Iterator[dict]:
    """The rows of a hub data set, "owner/name" or "owner/name:configuration"."""
    looks_like_file = re.search(r"\.(json|jsonl|gz|parquet|csv|txt)$", source.lower())
    if looks_like_file or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source):
        raise FileNotFoundError(f"There is no file {source}.")
    name, _, configuration = source.partition(":")
    try:
        yield from load_dataset(name, configuration or None, split=split)
    except Exception as error:
        raise ConnectionError(
            f"The data set {source} (split {split}) could not be loaded from the hub: "
            f"{str(error).splitlines()[0]} Set HF_ENDPOINT to a mirror, unset HF_HUB_OFFLINE, or "
            "give the path of a local file."
        ) from error
