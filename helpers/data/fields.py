"""The fields of a raw record: taken as they must be, or refused in a sentence."""

import re
from math import isfinite
from typing import Any


class BadRecord(ValueError):
    """One record that cannot be used: a kind that is counted, and a sentence for the reader."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind = kind


def field_text(record: dict, name: str) -> str:
    """A field that must be a text with something in it."""
    text = checked_text(present(record, name), name)
    if not text.strip():
        raise BadRecord("empty_field", f"the field {name} is empty")
    return text


def checked_text(value: Any, name: str) -> str:
    """The value, if it is a text that a file can hold."""
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"the field {name} holds {short(value)}, which is no text")
    # JSON can spell half a character ("\ud800"), which no tokenizer and no file can hold.
    if re.search("[\ud800-\udfff]", value):
        raise BadRecord("bad_utf8", f"the field {name} holds half of a surrogate pair")
    return value


def short(value: Any, limit: int = 40) -> str:
    """The value as it is shown in a sentence: quoted, and cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= limit else text[:limit] + "...")


def field_names(record: dict) -> str:
    return ", ".join(short(name, 30) for name in list(record)[:8]) or "no fields"


def present(record: dict, name: str) -> Any:
    if name not in record:
        raise BadRecord("missing_columns",
                        f"the field {name} is missing (has {field_names(record)})")
    return record[name]


def texts(record: dict, name: str) -> list[str]:
    """A field that must be a list of texts; a single text counts as a list of one."""
    values = present(record, name)
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not values:
        raise BadRecord("wrong_type", f"the field {name} is not a list of texts")
    return [checked_text(value, name) for value in values]


def optional_text(record: dict, name: str) -> str:
    """A text that may be empty, None or absent: "" then."""
    value = record.get(name)
    return "" if value is None else checked_text(value, name)


def zero_or_one(record: dict, name: str, *, accept_text: bool = False) -> int:
    """A field that names one of two things. True is refused: it may mean "the first is better"."""
    value = present(record, name)
    if accept_text and isinstance(value, str) and value in ("0", "1"):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in (0, 1):
        raise BadRecord("wrong_label", f"the field {name} holds {short(value)}, not 0 or 1")
    return value


def label_of(record: dict, name: str) -> bool:
    """True (1) for a desirable completion, False (0) for an undesirable one."""
    value = present(record, name)
    return value if isinstance(value, bool) else bool(zero_or_one(record, name))


def has_rank(score: Any) -> bool:
    """Whether a score is a finite number; None and NaN are neither better nor worse than others."""
    return score is not None and isfinite(score)


def different(row: dict) -> dict:
    """The preference row, if its two responses differ: equal ones prefer nothing."""
    if row["chosen"] == row["rejected"]:
        raise BadRecord("equal_responses", "the two responses are the same text")
    return row
