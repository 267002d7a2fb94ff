"""The verb `data`: convert files between record formats, and list the formats."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from helpers.data import LoadReport, Read, check_usable, read_rows
from helpers.data.conversation import TEMPLATES, Template, check_template
from helpers.data.conversion import TARGETS, check_target, unread_fields, write_record
from helpers.data.fields import BadRecord
from helpers.data.files import check_written, write_records
from helpers.data.formats import COLUMNS, FORMATS, examples
from helpers.data.registry import HUB_SETS, find_entry, load_registry
from helpers.prompts import render


@dataclass
class Conversion:
    """What one conversion read, wrote, and lost: field names with the number of records."""

    report: LoadReport = field(default_factory=LoadReport)
    written: int = 0
    lost: Counter = field(default_factory=Counter)


def convert_file(
    source: str | Path,
    out: str | Path,
    *,
    to: str,
    format: str = "auto",
    registry: str | Path | None = None,
    template: str | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Conversion:
    """Convert a file and print what was read, written and lost.

    source: a file or a hub name; with `registry` the name of a data set in that file. out: its name
    says how it is written, and it is replaced only when all is written. template: in which prompts
    and responses are written as text. The other options are those of `load_records`.

    Raises ValueError or OSError, in one sentence; then `out` is as it was.
    """
    check_target(to, template)
    check_written(out)
    if template is not None:
        check_template(template)
    options = {"format": format, "limit": limit, "split": split or "train"}
    if registry is not None:
        if format != "auto":
            raise ValueError("The registry says which format a data set has: leave --from out.")
        entry = find_entry(str(source), registry)
        source = entry.source
        options |= {"format": entry.format, "prepare": entry.prepare, "split": split or entry.split}
    done = Conversion()
    rows = read_rows(source, done.report, **options)
    done.written = write_records(out, _records(rows, done, source, to, template))
    print_conversion(done, to, out, guessed=options["format"] == "auto")
    return done


def _records(rows: Iterator[Read], done: Conversion, source, to: str,
             template: str | None) -> Iterator[dict]:
    """The records to write; those that cannot go there are counted as bad."""
    for read in rows:
        try:
            record, lost = write_record(read.row, read.format, to, template)
        except BadRecord as bad:
            done.report.num_records -= 1
            done.report.add(read.place, bad)
            continue
        done.lost.update(unread_fields(read.record, read.format) + lost)
        yield record
    check_usable(done.report, source)


def print_conversion(done: Conversion, to: str, out: str | Path, *, guessed: bool) -> None:
    """The counts; what was lost, by name; the file."""
    report = done.report
    if guessed:
        print(f"Format: {report.format}, guessed from the fields (--from says it).")
    print(report.describe())
    if report.blank_lines:
        print(f"Blank lines: {report.blank_lines}.")
    lost = ", ".join(f"{name} ({count})" for name, count in done.lost.most_common())
    print(f"Lost, with the number of records: {lost}." if lost else "Lost: no field.")
    print(f"Written: {done.written} records as {to} to {out}.")


# ---------------------------------------------------------------- the list of formats


def formats_table() -> str:
    """Every format with its columns and two records, as plain text."""
    parts = []
    for name, example in examples().items():
        written = "; can be written" if name in TARGETS else ""
        parts.append(f"{name}: {example['about']}\n"
                     f"  becomes {_columns(name)}{written}\n"
                     + "\n".join(f"  {_line(record)}" for record in example["records"]))
    return "\n".join(parts)


def formats_page() -> str:
    """docs/formats.md: formats_page.md with its tables filled in."""
    records = [f"### {name}\n\n```json\n" + "\n".join(map(_line, example["records"])) + "\n```"
               for name, example in examples().items()]
    sets = [f"| {name} | {entry['hf_hub_url']} | {entry['format']} |"
            for name, entry in load_registry(HUB_SETS).items()]
    templates = [f"| {name} | `{_shown(template)}` |" for name, template in TEMPLATES.items()]
    text = Path(__file__).with_name("formats_page.md").read_text(encoding="utf-8")
    return render(text, table="\n".join(map(_table_row, examples())), sets="\n".join(sets),
                  templates="\n".join(templates), records="\n\n".join(records))


def _table_row(name: str) -> str:
    known = FORMATS[name]
    fields = ", ".join([*known.fields, *(f"({field})" for field in known.optional)])
    return (f"| [{name}](#{name}) | {fields} | {_columns(name)} | "
            f"{'yes' if name in TARGETS else ''} | {examples()[name]['about']} |")


def _columns(name: str) -> str:
    return ", ".join(COLUMNS[FORMATS[name].kind])


def _line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False)


def _shown(template: Template) -> str:
    """One turn in a template, line ends as \\n."""
    turns = [{"role": "user", "content": "2 + 2?"}]
    return json.dumps(template.prompt(turns) + template.response("4"))[1:-1]
