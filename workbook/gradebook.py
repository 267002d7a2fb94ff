"""The scores of a folder of submissions: as CSV, as JUnit XML, and as a table on the console."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass
class Row:
    """What was found out about one submission."""

    file: str
    seed: int
    lesson: str = ""
    exercises: dict[str, dict] = field(default_factory=dict)  # what `attempt` sends of each
    totals: dict[str, list[str]] = field(default_factory=dict)  # the properties of each
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def held(self, exercise: str) -> int:
        """How many properties of an exercise hold."""
        found = self.exercises[exercise]
        if found["outcome"] == "reference":
            return 0
        said = found.get("properties", {})
        return sum(said.get(name, [""])[0] == "passed" for name in self.totals[exercise])

    def share(self, exercise: str) -> float:
        """The share of an exercise's properties that hold, in per cent."""
        return 100 * self.held(exercise) / len(self.totals[exercise])

    @property
    def score(self) -> float:
        """The mean over the exercises, in per cent."""
        return sum(map(self.share, self.exercises)) / max(len(self.exercises), 1)

    def outcome(self, exercise: str) -> str:
        """The outcome in words, with the count where only a part holds."""
        outcome, held = self.exercises[exercise]["outcome"], self.held(exercise)
        return f"{outcome} ({held}/{len(self.totals[exercise])})" if held else outcome


def table_text(rows: list[Row]) -> str:
    """The CSV: one line a submission, one column an exercise (per cent)."""
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    last = ["outcomes", "mistakes", "remarks", "seed", "seconds"]
    writer.writerow(["file", "lesson", "score", *exercises, *last])
    for row in rows:
        shares = [f"{row.share(e):.1f}" if e in row.exercises else "" for e in exercises]
        texts = [safe(text) for text in (_outcomes(row), _mistakes(row), "; ".join(row.remarks))]
        first = [safe(row.file), row.lesson, f"{row.score:.1f}"]
        writer.writerow([*first, *shares, *texts, row.seed, f"{row.seconds:.1f}"])
    return out.getvalue()


def _outcomes(row: Row) -> str:
    return "; ".join(f"{name}: {row.outcome(name)}" for name in row.exercises) or "not graded"


def _mistakes(row: Row) -> str:
    named = {name: found.get("mistake") for name, found in row.exercises.items()}
    return "; ".join(f"{name}: {mistake}" for name, mistake in named.items() if mistake)


def safe(text: str) -> str:
    """A text on one line that a spreadsheet does not take for a formula."""
    text = re.sub(r"\s+", " ", clean(text)).strip()
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text


def clean(text: str) -> str:
    """A text without the characters that XML, CSV or a terminal cannot hold."""
    kept = "".join(c for c in text if c in "\t\n" or (c.isprintable() and c <= "\uffef"))
    return kept.encode("utf-8", "replace").decode()


def junit_text(rows: list[Row]) -> str:
    """JUnit XML: one suite a submission, one case a property; a stub's are skipped."""
    root = ElementTree.Element("testsuites", name="workbook grade")
    for row in rows:
        suite = ElementTree.SubElement(root, "testsuite", name=clean(row.file))
        suite.set("time", f"{row.seconds:.1f}")
        counts = {"failure": 0, "error": 0, "skipped": 0}
        for exercise, name, kind, says in _cases(row):
            place = f"{row.lesson or 'no lesson'}.{exercise}"
            case = ElementTree.SubElement(suite, "testcase", classname=place, name=name)
            if kind:
                counts[kind] += 1
                ElementTree.SubElement(case, kind, message=clean(says))
        suite.set("tests", str(len(suite)))
        for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            suite.set(plural, str(counts[kind]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _cases(row: Row) -> Iterator[tuple[str, str, str, str]]:
    """(exercise, property, kind, text) of each property; kind is "" for one that holds."""
    if not row.exercises:
        yield "submission", "can be graded", "error", "; ".join(row.remarks)
    for exercise, found in row.exercises.items():
        outcome, said = found["outcome"], found.get("properties", {})
        for test in row.totals[exercise]:
            name = test.partition("__")[2]
            how, says = said.get(test, ["did not run", "an earlier property ended the run"])
            if outcome in ("not attempted", "reference"):
                kind = "skipped" if outcome == "not attempted" else "failure"
                yield exercise, name, kind, outcome
            else:
                kind = {"passed": "", "failed": "failure"}.get(how, "error")
                yield exercise, name, kind, says


def show(rows: list[Row]) -> None:
    """The scores as a small table on the console."""
    shown = Table("file", "lesson", "score", "mistakes and remarks")
    shown.columns[2].justify = "right"
    for row in rows:
        says = "; ".join(filter(None, [_mistakes(row), *row.remarks]))
        cells = (row.file, row.lesson or "?", f"{row.score:.0f} %", says)
        shown.add_row(*[escape(clean(cell)) for cell in cells])
    Console().print(shown)
