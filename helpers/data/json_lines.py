"""JSON Lines, one value a line, of files that may hold huge, blank, torn or foreign lines."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from helpers.data.fields import BadRecord
from helpers.data.json_text import Parser, column_of, is_torn

MAX_EMPTY_BYTES = 100_000_000  # of blank or huge lines on which a file ends: it holds no records
_BOM = b"\xef\xbb\xbf"


class Blank(NamedTuple):
    """Lines without anything that follow each other; the JSON value null is a bad record."""

    lines: int


def line_values(file: BinaryIO, max_bytes: int) -> Iterator[tuple[Any, int]]:
    """(value, lines that it stands for) to the end; never more than max_bytes of a line are held.

    A value is what the JSON says, a BadRecord, or Blank for any number of blank lines.
    """
    parser, empty = Parser(), 0
    while line := file.readline(max_bytes + 1):
        lines = 1
        if len(line) > max_bytes and not line.endswith(b"\n"):
            empty += len(line) + _rest_of_line(file, max_bytes, MAX_EMPTY_BYTES - empty)
            value = BadRecord("huge_line", f"the line is over {max_bytes:,} bytes{_cr_alone(line)}")
        elif not line.removeprefix(_BOM).strip():
            more, size = _blank_lines(file)
            lines, empty = 1 + more, empty + len(line) + size
            value = Blank(lines)
        else:
            value, empty = _parse(line, parser), 0
        yield value, lines
        if empty > MAX_EMPTY_BYTES:
            yield BadRecord("no_records", f"over {MAX_EMPTY_BYTES // 1_000_000} MB without a "
                                          "record; the rest of the file is not read"), 1
            return


def _rest_of_line(file: BinaryIO, max_bytes: int, most: int) -> int:
    """Read to the end of the line, or past `most` bytes; how many they were."""
    size = 0
    while size <= most and (part := file.readline(max_bytes)):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _blank_lines(file: BinaryIO) -> tuple[int, int]:
    """Read the blank lines that stand here, a buffer at a time: how many, and their bytes."""
    lines = size = 0
    while size <= MAX_EMPTY_BYTES:
        ahead = file.peek(65_536)
        end = ahead.rfind(b"\n", 0, len(ahead) - len(ahead.lstrip())) + 1
        if not end:
            break
        lines, size = lines + ahead.count(b"\n", 0, end), size + len(file.read(end))
    return lines, size


def _cr_alone(line: bytes) -> str:
    return ("; its lines end in CR alone: write them with LF"
            if b"\r" in line.rstrip(b"\r\n") else "")


def _parse(line: bytes, parser: Parser) -> Any:
    """The value of a line, or the BadRecord that says why there is none, with its column."""
    is_last = not line.endswith(b"\n")
    if b"\x00" in line:
        return BadRecord("bad_json", f"byte {line.index(0) + 1} is NUL: the file is damaged, or "
                                     "it is UTF-16")
    try:
        text = line.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        if is_last and error.reason == "unexpected end of data":
            return BadRecord("torn_last_line", "the file ends inside a character")
        return BadRecord("bad_utf8", f"byte {error.start + 1} is not UTF-8")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = parser.value(text, start)
        if rest := text[end:].strip(" \t\r\n"):
            problem = (f"column {text.index(rest, end) + 1}: more text stands behind the record"
                       f"{_cr_alone(line)}")
            return BadRecord("bad_json", problem)
    except BadRecord as bad:
        return bad
    except json.JSONDecodeError as error:
        if is_last and is_torn(error):
            return BadRecord("torn_last_line", f"column {error.pos + 1}: the file ends inside a "
                                               f"record ({error.msg})")
        return BadRecord("bad_json", f"column {error.pos + 1}: {error.msg}")
    if isinstance(value, BadRecord) and (at := column_of(text, start, value)) is not None:
        return BadRecord(value.kind, f"column {at + 1}: {value}")
    return value
