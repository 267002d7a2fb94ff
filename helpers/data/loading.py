"""Records loaded into `datasets.Dataset` columns that are always the same.

`load_records` returns the data and a `LoadReport`. A bad record is named with file and line,
counted, and left out; the rest goes on. The formats stand in `helpers.data.formats`, what a file
may be in `helpers.data.files`, data sets known by name in `helpers.data.registry`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from helpers.data.conversation import check_template, with_prompt
from helpers.data.fields import BadRecord, checked_text, short
from helpers.data.files import MAX_LINE_BYTES, Blank, Item, Note, read_items
from helpers.data.formats import FORMATS, Format, check_format, format_of, to_preference

__all__ = ["FORMATS", "BadRecord", "Format", "LoadReport", "format_of", "leaks",
           "load_records", "read_rows", "to_preference"]

MAX_PROBLEMS_KEPT = 50
RECORDS_TO_GUESS_FROM = 20
MOST_TO_GUESS_FROM = 1_000  # where most are bad
MAX_BAD_AT_START = 5_000


@dataclass
class LoadReport:
    """What was read and what was left out. `problems` keeps the first 50 as "file:line: why".

    format: the one that the records were read in, given or guessed. notes: what else to know of
    how a file was read, such as the field of an object in which the records stand.
    """

    num_records: int = 0
    blank_lines: int = 0
    bad_by_kind: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: str | None = None

    @property
    def num_bad(self) -> int:
        return self.bad_by_kind.total()

    def add(self, place: str, bad: BadRecord) -> None:
        self.bad_by_kind[bad.kind] += 1
        if len(self.problems) < MAX_PROBLEMS_KEPT:
            self.problems.append(f"{place}: {bad}")

    def describe(self, shown: int = 10) -> str:
        """What was read and what was bad, in one line and one more for each bad record shown."""
        notes = [f"  {note}" for note in self.notes[:shown]]
        if not self.num_bad:
            return "\n".join([f"Records: {self.num_records} read, none bad.", *notes])
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.bad_by_kind.items())
        lines = [f"Records: {self.num_records} used, {self.num_bad} bad ({kinds}):"]
        lines += [f"  {problem}" for problem in self.problems[:shown]]
        if self.num_bad > shown:
            lines.append(f"  ... and {self.num_bad - shown} more")
        return "\n".join(lines + notes)

    def as_dict(self) -> dict[str, Any]:
        return {"num_records": self.num_records, "num_bad": self.num_bad,
                "bad_by_kind": dict(self.bad_by_kind), "blank_lines": self.blank_lines,
                "problems": list(self.problems), "notes": list(self.notes)}


def load_records(
    source: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    limit: int | None = None,
    keep: Sequence[str] = (),
    split: str = "train",
    max_line_bytes: int = MAX_LINE_BYTES,
    template: str | None = None,
    prepare: Callable[[dict], dict] | None = None,
) -> tuple[Dataset, LoadReport]:
    """Load a file, several files, or a hub data set into canonical columns.

    source: .json (an array, or an object around one list of records), .jsonl, either with .gz,
        .parquet, or a hub name such as "openai/gsm8k:main" (the part after the colon is the
        configuration).
    format: a name of FORMATS; "auto" takes the one that most of the first 20 records fit.
    limit: stop after so many good records; a hub data set is then read as it arrives.
    keep: further fields to carry along (None where a record lacks one). split: of a hub data set.
    max_line_bytes: longer lines are skipped without being held in memory.
    template: a name of `helpers.data.conversation.TEMPLATES`, in which prompts and responses are
        written; see `with_prompt` for what happens without.
    prepare: a function that is called on each raw record first, such as a registry's.

    Returns the data set (columns `id` and those of the format, see `helpers.data.formats`; chats
    have `turns` beside the prompt) and the report.
    Raises ValueError where nothing usable is left, FileNotFoundError, or ConnectionError for a
    hub that cannot be reached; each in one sentence.

    Example:
        >>> data, report = load_records("problems.jsonl", limit=200)     # doctest: +SKIP
        >>> data[0]["gold_answer"], report.num_bad                       # doctest: +SKIP
        ('72', 0)
    """
    report, rows = LoadReport(), []
    if template is not None:
        check_template(template)
    for read in read_rows(source, report, format=format, limit=limit, split=split,
                          max_line_bytes=max_line_bytes, prepare=prepare):
        row = with_prompt(read.row, template or FORMATS[read.format].template)
        rows.append({name: read.record.get(name) for name in keep} | {"id": read.id} | row)
    check_usable(report, source)
    return _to_dataset(rows), report


def check_usable(report: LoadReport, source: Any) -> None:
    """Raise ValueError with the first problem where not one record could be used."""
    if not report.num_records:
        why = report.problems[0] if report.problems else f"{source}: nothing to read"
        raise ValueError(f"No usable record ({report.num_bad} bad). {why}")


def _to_dataset(rows: list[dict]) -> Dataset:
    try:
        return Dataset.from_list(rows)
    except (ValueError, TypeError, OverflowError) as error:  # Arrow wants one type in each column
        raise ValueError("The kept fields do not have one type in all records, or hold what no "
                         f"column can: {error}.") from None


# ---------------------------------------------------------------- one record after the other


class Read(NamedTuple):
    """One good record: its id, place and format, the raw record and the row made of it."""

    id: str
    place: str
    format: str
    record: dict
    row: dict


def read_rows(
    source: str | Path | Sequence[str | Path],
    report: LoadReport,
    *,
    format: str = "auto",
    limit: int | None = None,
    split: str = "train",
    max_line_bytes: int = MAX_LINE_BYTES,
    prepare: Callable[[dict], dict] | None = None,
) -> Iterator[Read]:
    """The good records of `load_records` one by one, not yet in a template; fills the report."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be 1 or more, but it is {limit}.")
    sources = [source] if isinstance(source, str | Path) else source
    if not isinstance(sources, Sequence) or not all(isinstance(s, str | Path) for s in sources):
        raise ValueError(f"Records are read from a path or a list of paths, not {short(source)}.")
    items = read_items(sources, split=split, max_line_bytes=max_line_bytes,
                       streaming=limit is not None, is_record=partial(_is_record, prepare, format))
    items, ids = map(partial(_prepared, prepare), items) if prepare else items, set()
    report.format, items = (_guess(items) if format == "auto" else (check_format(format), items))
    for item in items:
        if isinstance(item.value, Blank):
            report.blank_lines += item.value.lines
            continue
        if isinstance(item.value, Note):
            report.notes.append(f"{item.source}: {item.value}")
            continue
        try:
            read = _convert(item, report.format, ids)
        except BadRecord as bad:
            report.add(item.place, bad)
            if not report.num_records and report.num_bad >= MAX_BAD_AT_START:
                return  # what begins with so many bad records is no file of records
            continue
        ids.add(read.id)
        report.format = read.format  # of all that follow: one data set has one set of columns
        report.num_records += 1
        yield read
        if report.num_records == limit:
            return


def _is_record(prepare: Callable[[dict], dict] | None, format: str, value: dict) -> bool:
    """Whether an object has the fields of the format that is asked for, or of any."""
    try:
        value = prepare(value) if prepare else value
    except BadRecord:
        return False
    asked = [FORMATS[format]] if format in FORMATS else FORMATS.values()
    return any(set(known.fields) <= set(value) for known in asked)


def _prepared(prepare: Callable[[dict], dict], item: Item) -> Item:
    if not isinstance(item.value, dict):
        return item
    try:
        return item._replace(value=prepare(item.value))
    except BadRecord as bad:
        return item._replace(value=bad)


def _guess(items: Iterator[Item]) -> tuple[str | None, Iterator[Item]]:
    """The format that most of the first records fit, and all items again.

    Not that of the first record alone: where its response is missing it looks like a prompt, and
    every later response would be left out.
    """
    votes, seen = Counter(), []
    for item in items:
        seen.append(item)
        try:
            votes[format_of(item.value) if isinstance(item.value, dict) else None] += 1
        except BadRecord:
            votes[None] += 1
        is_enough = votes.total() - votes[None] == RECORDS_TO_GUESS_FROM
        if is_enough or len(seen) == MOST_TO_GUESS_FROM:
            break
    del votes[None]
    return max(votes, key=votes.get, default=None), chain(seen, items)


def _convert(item: Item, format: str | None, taken: set[str]) -> Read:
    if isinstance(item.value, BadRecord):
        raise item.value
    format = format or format_of(item.value)
    row = FORMATS[format].convert(item.value)
    return Read(_record_id(item, taken), item.place, format, item.value, row)


def _record_id(item: Item, taken: set[str]) -> str:
    """The record's own id, or one from file and line; an id met before gets its place added.

    Two problems under one id would be counted as two samples of one problem.
    """
    own = item.value.get("id")
    is_usable = isinstance(own, str | int) and not isinstance(own, bool) and str(own).strip()
    name = checked_text(str(own), "id") if is_usable else f"{Path(item.source).stem}-{item.number}"
    return f"{name}@{item.place}" if name in taken else name


# ---------------------------------------------------------------- leaks


def leaks(train: Iterable[dict], test: Iterable[dict]) -> list[dict[str, str]]:
    """Problems of the test split that stand in the training split too.

    train, test: rows with `question` or `prompt`, such as data sets of `load_records`. Two texts
    are the same when they differ only in case, white space and punctuation outside numbers.

    Returns {"train_id", "test_id", "text"} for each test row that leaks, with the first training
    row of that text; a row without an id is named by its index.

    Example:
        >>> leaks([{"prompt": "What is 2 + 2?"}], [{"prompt": "what is  2 + 2"}, {"prompt": "Hi"}])
        [{'train_id': '0', 'test_id': '0', 'text': 'what is  2 + 2'}]
    """
    seen: dict[str, str] = {}
    for index, row in enumerate(train):
        seen.setdefault(_normalized(_problem(row)), str(row.get("id", index)))
    found = ((str(row.get("id", index)), _problem(row)) for index, row in enumerate(test))
    return [{"train_id": seen[_normalized(text)], "test_id": test_id, "text": text}
            for test_id, text in found if _normalized(text) in seen]


def _problem(row: dict) -> str:
    return row["question"] if "question" in row else row["prompt"]


def _normalized(text: str) -> str:
    """The text with what seldom makes a new problem taken away; "1.5" and "15" stay different."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = re.sub(r"(?<!\d)[.,;:!?'\"]|[.,;:!?'\"](?!\d)", "", folded)
    return " ".join(bare.split()) or text
