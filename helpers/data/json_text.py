"""JSON read value by value: of a line, an array, an object around the records, a row of objects.

Nothing is held but the value that is read. What is wrong is a `BadRecord` that names line and
column; only what stops at the very end of a text is torn.
"""

import codecs
import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from helpers.data.fields import BadRecord, short

CHUNK = 65_536
MAX_VALUE = 4_000_000  # characters of one value inside an array
MAX_SPACE = 100_000_000  # characters between two values
_SPACE = re.compile(r"[ \t\n\r]*")
_NO_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_HALF_NUMBER = re.compile(r"\.|[eE][+-]?")  # behind the digits that make a number by themselves
_WORDS = ("true", "false", "null", "-")


class Parser:
    """The JSON parser of the standard library, without what it does in silence.

    It would keep one value of a name that stands twice, and take NaN, Infinity and 1e999.
    """

    def __init__(self):
        self.faults: list[BadRecord] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._unique, parse_float=self._finite,
                                        parse_constant=self._no_number)

    def value(self, text: str, at: int = 0) -> tuple[Any, int]:
        """The value that starts at `at`, a BadRecord if it is one to refuse, and where it ends."""
        self.faults.clear()
        try:
            value, end = self.decoder.raw_decode(text, at)
        except RecursionError:
            raise BadRecord("bad_json", "the nesting is too deep") from None
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python's own limit for integers
            raise BadRecord("bad_json", "a number has thousands of digits") from None
        return (self.faults[0] if self.faults else value), end

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            problem = f"the field {short(twice, 30)} stands there twice"
            self.faults.append(BadRecord("duplicate_field", problem))
        return fields

    def _finite(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            problem = f"{short(digits, 30)} is too large for a number"
            self.faults.append(BadRecord("no_number", problem))
        return value

    def _no_number(self, name: str) -> None:
        self.faults.append(BadRecord("no_number", f"{name} is no JSON value: write null, or a "
                                                  "number"))


def is_torn(error: json.JSONDecodeError) -> bool:
    """Whether the text stops before its value is complete; a fault inside it is something else."""
    rest = error.doc[error.pos:].strip(" \t\r\n")
    if not rest or error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\u"):
        return len(rest) < 6 and '"' not in rest
    return any(word.startswith(rest) for word in _WORDS) or bool(_HALF_NUMBER.fullmatch(rest))


def parse_document(text: str) -> Any:
    """The value of a whole JSON text.

    Raises ValueError, with line and column, also for a name that stands twice and for NaN.

    Example:
        >>> parse_document('{"a": 1,\\n "a": 2}')
        Traceback (most recent call last):
        helpers.data.fields.BadRecord: line 1, column 1: the field 'a' stands there twice
    """
    window = Window(io.BytesIO(text.encode("utf-8", "surrogatepass")))
    value = window.value()
    if isinstance(value, BadRecord):
        raise value
    if window.peek():
        raise BadRecord("bad_json", f"{window.place(window.at)}: more text stands behind the value")
    return value


def column_of(text: str, start: int, problem: BadRecord) -> int | None:
    """Where the NaN or Infinity stands that made a value bad."""
    if problem.kind != "no_number":
        return None
    found = (m.start() for m in _NO_NUMBER.finditer(text, start) if m[1])
    return next(found, None)


class Window:
    """A window on the text of a file from where reading stands, which knows line and column."""

    def __init__(self, file: BinaryIO):
        self.file, self.parser = file, Parser()
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.is_whole = "", 0, False
        self.line = self.column = 1  # of text[0]
        self.bytes_read, self.fault = 0, None

    def place(self, at: int) -> str:
        """ "line 3, column 5" of a place in the window."""
        line = self.line + self.text.count("\n", 0, at)
        before = self.text.rfind("\n", 0, at)
        return f"line {line}, column {at - before if before >= 0 else self.column + at}"

    def more(self) -> None:
        """Forget what was read, and read on: as much again as is there, at least a chunk."""
        if self.fault is not None:
            raise self.fault
        self._forget()
        content = self.file.read(max(CHUNK, len(self.text)))
        self.is_whole = not content
        try:
            self.text += self.decoder.decode(content, self.is_whole)
        except UnicodeDecodeError as error:
            self._keep_until(error, len(content))
        self.bytes_read += len(content)

    def _keep_until(self, error: UnicodeDecodeError, size: int) -> None:
        """Keep what stands before a byte that is not UTF-8; the next reading raises."""
        kept = len(error.object) - size  # of the character that the chunk before began
        number = self.bytes_read - kept + error.start + 1
        self.text += error.object[: error.start].decode("utf-8")
        says = ("the file ends inside a character" if self.is_whole else
                f"byte {number} is not UTF-8")
        self.fault = BadRecord("torn_last_line" if self.is_whole else "bad_utf8",
                               f"{self.place(len(self.text))}: {says}")
        self.is_whole = False

    def _forget(self) -> None:
        self.line += self.text.count("\n", 0, self.at)
        before = self.text.rfind("\n", 0, self.at)
        self.column = self.at - before if before >= 0 else self.column + self.at
        self.text, self.at = self.text[self.at :], 0

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        passed = 0
        while True:
            end = _SPACE.match(self.text, self.at).end()
            passed, self.at = passed + end - self.at, end
            if self.at < len(self.text) or self.is_whole:
                return self.text[self.at : self.at + 1]
            if passed > MAX_SPACE:
                raise BadRecord("no_record", f"{self.place(self.at)}: {MAX_SPACE // 1_000_000} MB "
                                             "of white space stand here")
            self.more()

    def expect(self, character: str, what: str) -> None:
        """Go past a character; BadRecord where another one stands."""
        found = self.peek()
        if found != character:
            torn = "the file ends before" if not found else f"{short(found)} stands in the place of"
            raise BadRecord("torn_last_line" if not found else "bad_json",
                            f"{self.place(self.at)}: {torn} {what}")
        self.at += 1

    def value(self) -> Any:
        """The next value, or a BadRecord in its place; raises one where reading cannot go on."""
        self.peek()
        while True:
            try:
                value, end = self.parser.value(self.text, self.at)
            except BadRecord as bad:
                raise BadRecord(bad.kind, f"{self.place(self.at)}: {bad}") from None
            except json.JSONDecodeError as error:
                self._grow_or_raise(error)
                continue
            if end < len(self.text) or self.is_whole:
                return self._read(value, end)
            self.more()  # a number may go on

    def _grow_or_raise(self, error: json.JSONDecodeError) -> None:
        place = self.place(error.pos)
        if not is_torn(error) and len(self.text) - error.pos > 16:
            raise BadRecord("bad_json", f"{place}: {error.msg}") from None
        if self.is_whole:
            kind = "torn_last_line" if is_torn(error) else "bad_json"
            says = "the file ends inside a record" if is_torn(error) else error.msg
            raise BadRecord(kind, f"{place}: {says}") from None
        if len(self.text) - self.at > MAX_VALUE:
            raise BadRecord("huge_record", f"{self.place(self.at)}: the record is over "
                                           f"{MAX_VALUE // 1_000_000} MB") from None
        self.more()

    def _read(self, value: Any, end: int) -> Any:
        if isinstance(value, BadRecord):
            where = column_of(self.text, self.at, value)
            place = self.place(self.at if where is None else where)
            value = BadRecord(value.kind, f"{place}: {value}")
        self.at = end
        return value


class Note(str):
    """What a reader should know of how a file was read; no record."""


def array_values(window: Window) -> Iterator[Any]:
    """The values of the array that starts here."""
    window.expect("[", "the array")
    is_first = True
    while window.peek() != "]":
        if not is_first:
            window.expect(",", "a comma or the ] of the array")
        yield window.value()
        is_first = False
    window.at += 1


def object_values(window: Window) -> Iterator[Any]:
    """The values of the one list of objects in an object, and a note that names its field."""
    taken = None
    for name in _members(window):
        if not _is_list_of_objects(window):
            window.value()
        elif taken is not None:
            raise BadRecord("two_lists", f"the fields {short(taken)} and {short(name)} both hold "
                                         "lists of records: put each into a file of its own")
        else:
            taken = name
            yield Note(f"the records are those of its field {short(name)}")
            yield from array_values(window)


def _members(window: Window) -> Iterator[str]:
    """The names in the object that starts here; the caller reads the value behind each."""
    window.expect("{", "the object")
    is_first = True
    while window.peek() != "}":
        if not is_first:
            window.expect(",", "a comma or the } of the object")
        if window.peek() != '"':
            window.expect('"', "a name in quotes")
        name = window.value()
        window.expect(":", "the colon")
        yield name
        is_first = False
    window.at += 1


def _is_list_of_objects(window: Window) -> bool:
    if window.peek() != "[":
        return False
    while True:
        end = _SPACE.match(window.text, window.at + 1).end()
        if end < len(window.text):
            return window.text[end] == "{"
        if window.is_whole or end - window.at > MAX_VALUE:
            return False
        window.more()


def following_values(window: Window) -> Iterator[Any]:
    """Values one behind the other, on as many lines as they like."""
    while window.peek():
        yield window.value()
