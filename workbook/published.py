"""The published figures that the lessons show beside the learner's (workbook/published.yaml)."""

import functools
import html
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbook.hints import CourseFileError, read_course_file
from workbook.recorded import read_recorded

DASH = "–"
Keys = list[str | int]  # a path: keys may hold dots and spaces, a number is a place in a list
Finding = str | Keys | list[Keys]  # a path with dots, a path, or several paths


class Figure(BaseModel):
    """One published number: who, where, what was measured, and how it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    project: Literal["S0", "S1", "S2", "S3", "S4"]
    row: int
    value: float | tuple[float, float]  # two numbers: a range, or two measures
    is_pair: bool = False  # two measures
    measured: str
    unit: Literal["share", "count", "score"] = "share"
    lessons: Annotated[list[str], Field(min_length=1)]
    finding: Finding | dict[str, Finding] | None = None  # what stands beside it; a dict names ours
    found_in: str | None = None  # the one of its lessons whose findings hold it
    absent: str | None = None  # why nothing stands beside it, in two or three words

    @model_validator(mode="after")
    def _says_what_stands_beside_it(self):
        if (self.finding is None) == (self.absent is None):
            raise ValueError("needs either finding or absent")
        if self.finding and len(self.lessons) > 1 and self.found_in not in self.lessons:
            raise ValueError("needs found_in: the one of its lessons whose findings hold it")
        return self

    @property
    def source(self) -> str:
        """Short label for a figure or a table, such as "S0, row 11"."""
        return f"{self.project}, row {self.row}"

    @property
    def text(self) -> str:
        """The published value as it is shown."""
        parts = self.value if isinstance(self.value, tuple) else (self.value,)
        return (" and " if self.is_pair else " to ").join(number_text(v, self.unit) for v in parts)

    def own_text(self, findings: dict) -> str:
        """What these findings hold beside it; several values, as of several seeds, with commas."""
        if self.finding is None:
            return self.absent
        named = self.finding if isinstance(self.finding, dict) else {"": self.finding}
        texts = []
        for name, finding in named.items():
            own = own_value(findings, finding)
            values = own if isinstance(own, (list, tuple)) else [own]
            if own is not None:
                joined = (" and " if self.is_pair else ", ").join(
                    number_text(value, self.unit) for value in values
                )
                texts.append(f"{joined} ({name})" if name else joined)
        return "; ".join(texts) or DASH


class _Projects(BaseModel):
    model_config = ConfigDict(extra="forbid")
    projects: dict[str, str]
    page_only: list[str]
    figures: dict[str, Figure]


@functools.cache
def _read() -> _Projects:
    return read_course_file(Path(__file__).with_name("published.yaml"), _Projects)


def published_figures(lesson: str | None = None) -> dict[str, Figure]:
    """All entries by id, or those that one lesson shows."""
    entries = _read().figures
    return {name: e for name, e in entries.items() if lesson is None or lesson in e.lessons}


def project_name(short: str) -> str:
    """What a short name such as S0 stands for."""
    return _read().projects[short]


def published(name: str) -> Figure:
    """One published figure: `published("s0.format_rate").value` is 0.02501...

    Raises: CourseFileError for an unknown id.
    """
    entries = published_figures()
    if name not in entries:
        raise CourseFileError(f'published.yaml has no "{name}"; it has {", ".join(entries)}.')
    return entries[name]


def published_group(prefix: str) -> dict[str, Figure]:
    """Figures that belong together, by the last part of their ids.

    Example: `published_group("s4.alpaca_7b")["accuracy"].value` is 0.709987

    Raises: CourseFileError where no id starts so.
    """
    start = f"{prefix}."
    found = {
        name.removeprefix(start): entry
        for name, entry in published_figures().items()
        if name.startswith(start)
    }
    if not found:
        raise CourseFileError(f'published.yaml has no ids that start with "{start}".')
    return found


def is_page_only(name: str) -> bool:
    """Whether a figure stands on docs/results.md and not in the README's shorter table."""
    return any(fnmatchcase(name, pattern) for pattern in _read().page_only)


def own_value(findings: dict, finding: Finding | None):
    """The value of findings.json under a path of keys; None where there is none.

    finding: "key.key"; or a list of keys, where they hold dots or a number stands for a place in
    a list; or a list of such lists: several values, and None where one is missing.

    Example:
        >>> own_value({"P2 8 0.02": {"f1": [0.5, 0.6]}}, ["P2 8 0.02", "f1", 1])
        0.6
    """
    keys = finding.split(".") if isinstance(finding, str) else finding
    if not keys:
        return None
    if isinstance(keys[0], list):
        values = [own_value(findings, each) for each in keys]
        return None if None in values else values
    for key in keys:
        if isinstance(findings, dict):
            findings = findings.get(str(key))
        elif isinstance(findings, (list, tuple)) and isinstance(key, int) and key < len(findings):
            findings = findings[key]
        else:
            return None
    return findings


def number_text(value: float | None, unit: str) -> str:
    """A value as it is shown: shares in percent, counts whole, a missing one as a dash."""
    if value is None:
        return DASH
    if unit == "share":
        return f"{100 * value:.1f} %" if value >= 0.01 or value == 0 else f"{100 * value:.2f} %"
    return f"{value:,.0f}" if unit == "count" else f"{value:.3f}"


@dataclass
class ComparisonTable:
    """Rows of (measured, source, published, recorded, here), shown as HTML or as text."""

    rows: list[tuple[str, str, str, str, str]]
    note: str = ""
    header = ("measured", "source", "published", "recorded", "here")

    def __repr__(self) -> str:
        rows = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        padded = [[text.ljust(widths[i]) for i, text in enumerate(row)] for row in rows]
        lines = ["  ".join(row) for row in padded]
        return "\n".join([*(line.rstrip() for line in lines), self.note]).rstrip()

    def _repr_html_(self) -> str:
        left, tight = "style='text-align:left'", "style='text-align:left;white-space:nowrap'"
        cells = ["".join(f"<th {left}>{name}</th>" for name in self.header)]
        for first, *others in self.rows:
            row = f"<td {left}>{html.escape(first)}</td>"
            cells.append(row + "".join(f"<td {tight}>{html.escape(x)}</td>" for x in others))
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table>{body}</table><p>{html.escape(self.note)}</p>"


def comparison_table(lesson: str, findings: dict, ids: list[str] | None = None) -> ComparisonTable:
    """Published, recorded and own numbers side by side; `ids` default to the lesson's findings.

    Example: `comparison_table("01", findings, ["s0.format_rate"])`
    """
    known = {
        name: entry
        for name, entry in published_figures(lesson).items()
        if entry.finding and entry.found_in in (None, lesson)
    }
    entries = {name: published(name) for name in ids} if ids else known
    recorded = read_recorded(lesson)
    rows = []
    for entry in entries.values():
        own = (entry.own_text(recorded), entry.own_text(findings))
        rows.append((entry.measured, entry.source, entry.text, *own))
    shown = sorted({entry.project for entry in entries.values()})
    return ComparisonTable(rows, "; ".join(f"{name}: {project_name(name)}" for name in shown))
