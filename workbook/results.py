"""`workbook results`: every published figure beside what the course's own recorded runs found.

`docs/results.md` holds all of them, the README's shorter table those that a lesson of ours answers
and published.yaml does not keep for the page. Each row of ours has the command that measures it
again. A test compares all with what this module makes, so none can grow stale.
"""

from pathlib import Path

from workbook.progress import write_text
from workbook.published import DASH, is_page_only, project_name, published_figures
from workbook.recorded import read_recorded
from workbook.setup import ROOT

PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEADER = (
    "| lesson | measured | source | published | here | command |",
    "|---|---|---|---|---|---|",
)

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")


def write_results() -> list[Path]:
    """Write `docs/results.md` and the table of each README anew; returns the files that changed."""
    wanted = {path: with_table(path.read_text(encoding="utf-8")) for path in READMES}
    wanted[PAGE] = results_page()
    changed = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in changed:
        write_text(path, wanted[path])
    return changed


def results_page() -> str:
    """The whole page: a table a lesson, below what its recorded run was."""
    figures = published_figures()
    lessons = sorted({lesson for entry in figures.values() for lesson in entry.lessons})
    parts = [_INTRODUCTION.strip()]
    for lesson in lessons:
        recorded = read_recorded(lesson)
        parts += [f"## Lesson {lesson}", _run_text(recorded)]
        parts.append("\n".join((*HEADER, *_rows(lesson, whole=True))))
    projects = sorted({entry.project for entry in figures.values()})
    parts.append("\n".join(f"- {short}: {project_name(short)}" for short in projects))
    return "\n\n".join(parts) + "\n"


def readme_table() -> str:
    """The figures that a lesson's own findings answer, without those for the page only."""
    lessons = sorted({x for entry in published_figures().values() for x in entry.lessons})
    rows = [row for x in lessons for row in _rows(x, whole=False)]
    return "\n".join((*HEADER, *rows))


def with_table(text: str) -> str:
    """The README's text with the table between its two marks written anew.

    Raises: ValueError where a mark is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"A README needs the lines {BEGIN} and {END} once each.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{rest.partition(END)[2]}"


def _run_text(recorded: dict) -> str:
    if not recorded:
        return "Not recorded yet."
    seeds = recorded.get("seeds", [])
    return (
        f"Recorded: profile {recorded['profile']}, depth {recorded['depth']}, "
        f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}."
    )


def _rows(lesson: str, whole: bool) -> list[str]:
    rows = []
    for name, entry in published_figures(lesson).items():
        home = entry.found_in or lesson
        own, command = entry.own_text(read_recorded(home)), DASH
        is_ours = entry.finding is not None and own != DASH
        if is_ours:
            command = f"`python3 -m workbook run {home} --depth full`"
            own += f" (lesson {home})" if home != lesson else ""
        if whole or (is_ours and home == lesson and not is_page_only(name)):
            cells = (lesson, entry.measured, entry.source, entry.text, own, command)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


_INTRODUCTION = """
# Published and measured

Every figure of the five projects that this course shows, and what its own runs found on the tiny
model, from `solutions/recorded/`. The models, data and sizes are not theirs: what compares is the
direction of a difference and its size against its interval, which the lessons show. Several values
with commas are several seeds; words in brackets say which run, model or lesson of ours it is. S4's
three policies stand beside our three in their order, and are no more alike than that. The command
measures a row of ours again and leaves the recorded file as it is, unless `--record` is added. The
page is made by `python3 -m workbook results`.
"""
