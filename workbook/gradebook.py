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

OUTCOMES = ("passed", "failed", "raised", "not attempted", "reference", "did not end")
LONGEST_FIELD = 8_000  # a spreadsheet takes 32,767 characters, Python's csv reader 131,072
LONGEST_REMARK, MOST_REMARKS = 300, 20
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


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
    ended: bool = False

    def held(self, exercise: str) -> int:
        """How many properties of an exercise hold."""
        found = self.exercises[exercise]
        if found["outcome"] == "reference":
            return 0
        said = found.get("properties", {})
        return sum(said.get(name, [""])[0] == "passed" for name in self.totals[exercise])

    def remark(self, *texts: str) -> None:
        """Add remarks, each cut to a readable length; behind the twentieth, one that says so."""
        for text in texts[: MOST_REMARKS + 1]:
            if len(self.remarks) < MOST_REMARKS:
                self.remarks.append(text if len(text) <= LONGEST_REMARK else text[:299] + "…")
            elif len(self.remarks) == MOST_REMARKS:
                self.remarks.append("and more remarks of this kind")

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


def is_well_formed(message: dict) -> bool:
    """Whether a message is one that `attempt` sends: learner code may have sent it, or torn it."""
    kinds = {"lesson": str, "remarks": list, "exercise": str, "outcome": str, "properties": dict,
             "mistake": str}
    if any(type(value) is not kinds.get(name) for name, value in message.items()):
        return False
    said = list(message.get("properties", {}).values())
    if any(type(each) is not list or len(each) != 2 for each in said):
        return False
    texts = [*message.get("remarks", []), *(text for each in said for text in each)]
    return (
        all(type(text) is str for text in texts)
        and message.get("outcome", "passed") in OUTCOMES
        and ("exercise" in message) == ("outcome" in message)
    )


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
        first = [safe(file_text(row.file)), row.lesson, f"{row.score:.1f}"]
        writer.writerow([*first, *shares, *texts, row.seed, f"{row.seconds:.1f}"])
    return out.getvalue()


def _outcomes(row: Row) -> str:
    return "; ".join(f"{name}: {row.outcome(name)}" for name in row.exercises) or "not graded"


def _mistakes(row: Row) -> str:
    named = {name: found.get("mistake") for name, found in row.exercises.items()}
    return "; ".join(f"{name}: {mistake}" for name, mistake in named.items() if mistake)


def safe(text: str) -> str:
    """A text on one line, of bounded length, that a spreadsheet does not take for a formula."""
    text = re.sub(r"\s+", " ", clean(text)).strip()
    return "'" + text if text.startswith(FORMULA) else text


def clean(text: str) -> str:
    """A text without the characters that XML, CSV or a terminal cannot hold."""
    kept = "".join(c for c in text[:LONGEST_FIELD] if c in "\t\n" or c.isprintable())
    return kept if len(text) <= LONGEST_FIELD else kept + "…"


def file_text(name: str) -> str:
    """A file's name in which what cannot be printed is written out: two files have two names."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def junit_text(rows: list[Row]) -> str:
    """JUnit XML: one suite a submission, one case a property; a stub's are skipped."""
    root = ElementTree.Element("testsuites", name="workbook grade")
    for row in rows:
        suite = ElementTree.SubElement(root, "testsuite", name=file_text(row.file))
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
        cells = (file_text(row.file), row.lesson or "?", f"{row.score:.0f} %", says)
        shown.add_row(*[escape(clean(cell)) for cell in cells])
    Console().print(shown)
