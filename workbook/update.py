"""`workbook update`: what changed in the course's lessons goes into the learner's copies.

A three-way merge, cell by cell: the lesson as it was copied (kept in work/.originals), the copy,
and the lesson as it is now. A cell that the learner has not touched follows the course. One that
the learner changed stays, and where the course changed it too, its new form is put under it as
text that runs nothing. Cells that the learner added stay where they are; a backup is kept.
"""

import hashlib
import shutil
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

import nbformat

from workbook.lab import copy_file, copy_lessons, original_of, set_aside_name
from workbook.panel import count
from workbook.progress import write_text

SIMILAR = 0.6  # from this ratio of difflib on, a new cell counts as another form of an old one
START = ""  # the place before the first cell


class NotebookError(ValueError):
    """A copy that cannot be updated; the message names the file and the cure."""


@dataclass
class Merge:
    """The cells of an updated copy, and what happened to them."""

    cells: list = field(default_factory=list)
    renewed: int = 0
    added: int = 0
    removed: int = 0
    yours: int = 0
    conflicts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {"renewed": self.renewed, "added": self.added, "removed": self.removed}
        said = [f"{count(number, 'cell')} {what}" for what, number in counts.items() if number]
        said += [f"{count(self.yours, 'cell')} of yours kept"] if self.yours else []
        return ", ".join(said or ["no cell renewed"])


def update_lessons(lessons: Path, work: Path) -> tuple[list[str], list[str]]:
    """Bring every copy in work/ up to date: (what happened, what could not be done)."""
    fresh = copy_lessons(lessons, work)
    said, problems = [f"{path.name}: copied into {work.name}/." for path in fresh], []
    for lesson in sorted(lessons.glob("*.ipynb")):
        copy = work / lesson.name
        if copy in fresh:
            continue
        try:
            said += update_copy(lesson, copy)
        except NotebookError as error:
            problems.append(str(error))
    return said, problems


def update_copy(lesson: Path, copy: Path) -> list[str]:
    """Merge the changes of a lesson into its copy; return the lines to print.

    Raises: NotebookError; the copy then stays as it is.
    """
    original = original_of(copy)
    if not original.exists():
        raise NotebookError(
            f"{copy.name} stays as it is, because nothing says which of its cells you wrote;"
            f" `workbook reset {copy.stem[:2]}` gives a fresh copy and keeps this one beside it."
        )
    if original.read_bytes() == lesson.read_bytes():
        return [f"{copy.name}: up to date."]
    old, mine, new = (read_notebook(path) for path in (original, copy, lesson))
    merge = merge_cells(old.cells, mine.cells, new.cells)
    backup = set_aside_name(copy)
    shutil.copyfile(copy, backup)
    mine.cells, mine.nbformat, mine.nbformat_minor = merge.cells, new.nbformat, new.nbformat_minor
    write_text(copy, nbformat.writes(mine))
    copy_file(lesson, original)
    return [f"{copy.name}: {merge}; as it was: {backup.name}", *merge.conflicts]


def read_notebook(path: Path):
    """A notebook in the current format, every cell with an id.

    Raises: NotebookError for a file that is none.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        return nbformat.v4.upgrade(notebook)  # some editors save cells without ids
    except Exception as error:  # what a broken file raises has no common base in nbformat
        raise NotebookError(
            f"{path} stays as it is, because it cannot be read as a notebook"
            f" ({type(error).__name__}); `workbook reset {path.stem[:2]}` gives a fresh copy."
        ) from error


def merge_cells(old: list, mine: list, new: list) -> Merge:
    """The cells of the course in their order, each followed by what the learner added behind it."""
    before = {cell.id: cell for cell in old}
    own = {_name(cell, before): cell for cell in mine}
    formerly = former_names(old, new)
    merge, blocks = Merge(), {START: []}
    for cell in new:
        name = formerly.get(cell.id, cell.id)
        if name in own:
            blocks[name] = _settle(merge, own[name], before.get(name), cell, own)
        elif cell.id not in before:  # the others were deleted by the learner
            blocks[name] = [cell]
            merge.added += 1
    last = START
    for name, cell in own.items():
        if name in blocks:
            last = name
        elif name in before and same(cell, before[name]):
            merge.removed += 1
        else:
            blocks[last].append(cell)
            merge.yours += 1
    merge.cells = [cell for block in blocks.values() for cell in block]
    return merge


def _name(cell, before: dict) -> str:
    """The id under which the course knows a cell; some editors save cells without their ids."""
    grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
    if cell.id in before:
        return cell.id
    if grade_id in before:
        return grade_id
    return next((name for name, one in before.items() if same(one, cell)), cell.id)


def same(one, other) -> bool:
    """Whether two cells hold the same text."""
    return (one.cell_type, one.source) == (other.cell_type, other.source)


def former_names(old: list, new: list) -> dict[str, str]:
    """{id of a new cell: id of the old cell that it replaces}, by likeness of their texts."""
    known = {cell.id for cell in old}
    gone = [cell for cell in old if cell.id not in {cell.id for cell in new}]
    names = {}
    for cell in new:
        texts = {one.source: one for one in gone if one.cell_type == cell.cell_type}
        close = [] if cell.id in known else get_close_matches(cell.source, texts, 1, SIMILAR)
        if close:
            names[cell.id] = texts[close[0]].id
            gone.remove(texts[close[0]])
    return names


def _settle(merge: Merge, mine, old, new, own: dict) -> list:
    """What stands in place of one cell: the learner's, the course's, or both."""
    untouched = old is not None and same(mine, old)
    if untouched and not same(old, new):
        merge.renewed += 1
        return [new]
    mine.id = new.id
    mine.metadata.update(new.metadata)
    if untouched or same(mine, new):
        return [mine]
    merge.yours += 1
    if old is not None and same(old, new):
        return [mine]
    title = _title(mine, new)
    both = merge_lines(old.source, mine.source, new.source) if old and is_setup(new) else None
    if both is not None:
        mine.source = both
        merge.conflicts.append(f"  {title}: your changes and the course's are both in it.")
        return [mine]
    merge.conflicts.append(f"  {title}: yours is kept; the course's new form stands under it.")
    note = new_form(new)
    return [mine] if note.id in own else [mine, note]


def _title(mine, new) -> str:
    """How a line of the summary calls a cell: by its exercise, its role, or its first line."""
    if is_setup(new):
        return "the set-up cell"
    first = mine.source.strip().partition("\n")[0]
    return exercise_name(new) or f'"{first[:60]}"'


def exercise_name(cell) -> str | None:
    """The name of the exercise that a cell holds, or None."""
    meta = cell.metadata.get("nbgrader", {})
    return meta.get("grade_id") if meta.get("solution") else None


def is_setup(cell) -> bool:
    """Whether the other cells rely on this one, so that new lines are needed beside the old."""
    return "setup" in cell.metadata.get("tags", [])


def new_form(cell):
    """A text cell that shows the course's new form of a cell, and runs nothing."""
    said = "**The course has changed the cell above. Yours was kept; this is the new form:**\n\n"
    if cell.cell_type == "code":
        said += f"~~~~python\n{cell.source}\n~~~~"
    else:
        said += "\n".join(f"> {line}" for line in cell.source.splitlines())
    name = "update-" + hashlib.sha256(said.encode()).hexdigest()[:12]
    return nbformat.v4.new_markdown_cell(said, id=name)


def merge_lines(base: str, mine: str, new: str) -> str | None:
    """`base` with the line changes of both; None where both changed the same lines.

    >>> merge_lines("a\\nb\\nc", "A\\nb\\nc", "a\\nb\\nC")
    'A\\nb\\nC'
    """
    lines = base.split("\n")
    edits = set()
    for other in (mine.split("\n"), new.split("\n")):
        for tag, start, end, first, last in SequenceMatcher(None, lines, other).get_opcodes():
            if tag != "equal":
                edits.add((start, end, tuple(other[first:last])))
    ordered = sorted(edits, reverse=True)
    for later, earlier in zip(ordered, ordered[1:], strict=False):
        if earlier[1] >= later[0]:
            return None
    for start, end, replacement in ordered:
        lines[start:end] = replacement
    return "\n".join(lines)
