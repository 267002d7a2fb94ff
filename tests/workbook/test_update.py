"""`update`: the course's changes reach the learner's copy; what the learner wrote stays."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workbook import cli
from workbook.lab import copy_lessons, outdated, reset_lesson
from workbook.update import merge_lines, update_lessons

EXERCISE = {"nbgrader": {"grade_id": "double", "solution": True}}
STUB = 'def double(x):\n    """Twice x."""\n    raise NotImplementedError()'


def lesson_cells() -> list:
    """A lesson: text, set-up, an exercise, its check, a run, the end."""
    return [
        new_markdown_cell("# A lesson\n\nWhat you will see.", id="title"),
        new_code_cell(
            "import re\nimport json\n\nbegin('01')\nprofile = use_profile('tiny')",
            id="setup",
            metadata={"tags": ["setup"]},
        ),
        new_code_cell(STUB, id="double", metadata=EXERCISE),
        new_code_cell("check(double)", id="check"),
        new_code_cell("print('a run with', double(2))", id="run"),
        new_code_cell("progress()", id="end"),
    ]


@pytest.fixture
def course(tmp_path):
    """A lesson in lessons/ and its copy in work/; `.write` replaces the one in the course."""
    (tmp_path / "lessons").mkdir()
    write(tmp_path / "lessons", lesson_cells())
    copy_lessons(tmp_path / "lessons", tmp_path / "work")
    return tmp_path


def write(folder, cells, name="01_a.ipynb") -> None:
    nbformat.write(new_notebook(cells=cells), folder / name)


def cells_of(course, name="01_a.ipynb") -> dict:
    return {cell.id: cell for cell in nbformat.read(course / "work" / name, as_version=4).cells}


def edit(course, **sources) -> None:
    """Change cells of the copy, as a learner does."""
    notebook = nbformat.read(course / "work" / "01_a.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = sources.get(cell.id, cell.source)
        if cell.cell_type == "code":
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("stream", text="seen\n")]
    nbformat.write(notebook, course / "work" / "01_a.ipynb")


def update(course) -> list[str]:
    said, problems = update_lessons(course / "lessons", course / "work")
    assert problems == []
    return said


def changed_lesson(course, **changes) -> None:
    """Write the lesson anew: {id: new cell, or None for a cell that goes}."""
    cells = [changes.get(cell.id, cell) for cell in lesson_cells()]
    write(course / "lessons", [cell for cell in cells if cell is not None])


def test_nothing_changed_in_the_course_leaves_the_file_alone(course):
    edit(course, double="def double(x):\n    return 2 * x")
    before = (course / "work" / "01_a.ipynb").read_bytes()
    assert update(course) == ["01_a.ipynb: up to date."]
    assert (course / "work" / "01_a.ipynb").read_bytes() == before


def test_untouched_cells_follow_the_course_and_touched_ones_stay(course):
    mine = "def double(x):\n    return x + x"
    edit(course, double=mine)
    new_run = new_code_cell("print('a new run with', double(2))", id="run-2")
    changed_lesson(course, run=new_run, check=None)
    backup = (course / "work" / "01_a.ipynb").read_bytes()
    assert outdated(course / "lessons", course / "work") == ["01_a.ipynb"]
    (line,) = update(course)
    assert "1 cell renewed, 1 cell removed, 1 cell of yours kept; as it was: 01_a." in line
    cells = cells_of(course)
    assert list(cells) == ["title", "setup", "double", "run-2", "end"]
    assert cells["double"].source == mine and cells["double"].outputs
    assert cells["run-2"].outputs == [] and cells["end"].outputs
    kept = course / "work" / line.rpartition(" ")[2]
    assert kept.read_bytes() == backup
    assert update(course) == ["01_a.ipynb: up to date."]
    assert outdated(course / "lessons", course / "work") == []


def test_own_cells_stay_behind_their_neighbours_and_new_ones_come_in(course):
    notebook = nbformat.read(course / "work" / "01_a.ipynb", as_version=4)
    notebook.cells.insert(5, new_code_cell("my_plot()", id="mine"))
    notebook.cells.insert(0, new_markdown_cell("My notes", id="notes"))
    del notebook.cells[1]  # the title: a cell that the learner threw away stays away
    nbformat.write(notebook, course / "work" / "01_a.ipynb")
    cells = lesson_cells()
    cells.insert(5, new_markdown_cell("## A new part", id="part"))
    cells[4] = new_code_cell("print('a better run with', double(2))", id="run-2")
    write(course / "lessons", cells)
    (line,) = update(course)
    assert "1 cell renewed, 1 cell added, 2 cells of yours kept" in line
    order = ["notes", "setup", "double", "check", "run-2", "mine", "part", "end"]
    assert list(cells_of(course)) == order


def test_conflict_keeps_the_learners_cell_and_shows_the_new_form_as_text(course):
    mine = "def double(x):\n    return x + x"
    edit(course, double=mine, run="print('mine', double(3))")
    stub = STUB.replace("Twice x.", "Twice x, exactly.")
    new_run = new_code_cell("print('a better run with', double(2))", id="run-2")
    changed_lesson(course, double=new_code_cell(stub, id="double", metadata=EXERCISE), run=new_run)
    said = update(course)
    assert said[1:] == [
        "  double: yours is kept; the course's new form stands under it.",
        "  \"print('mine', double(3))\": yours is kept; the course's new form stands under it.",
    ]
    cells = list(cells_of(course).values())
    place = [cell.id for cell in cells].index("double")
    assert cells[place].source == mine
    assert cells[place + 1].cell_type == "markdown" and stub in cells[place + 1].source
    assert [cell.source for cell in cells if cell.cell_type == "code"].count(stub) == 0
    # The next change of the course finds the same cells again.
    changed_lesson(course, run=new_run, end=None)
    update(course)
    assert cells_of(course)["double"].source == mine and "end" not in cells_of(course)


def test_setup_cell_takes_the_changes_of_both(course):
    source = lesson_cells()[1].source
    edit(course, setup=source.replace("tiny", "small"))
    renewed = source.replace("import json", "import json\nimport math")
    changed_lesson(course, setup=new_code_cell(renewed, id="setup-2", metadata={"tags": ["setup"]}))
    said = update(course)
    assert said[1] == "  the set-up cell: your changes and the course's are both in it."
    assert cells_of(course)["setup-2"].source == renewed.replace("tiny", "small")


def test_copy_saved_without_cell_ids_is_matched_by_its_text(course):
    notebook = nbformat.read(course / "work" / "01_a.ipynb", as_version=4)
    notebook.cells[2].source = "def double(x):\n    return x + x"
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]
    nbformat.write(notebook, course / "work" / "01_a.ipynb")
    changed_lesson(course, run=new_code_cell("print('a new run with', double(2))", id="run-2"))
    assert "1 cell renewed, 1 cell of yours kept" in update(course)[0]
    cells = cells_of(course)
    assert list(cells) == ["title", "setup", "double", "check", "run-2", "end"]
    assert cells["double"].source.endswith("return x + x")


def test_broken_and_unknown_copies_are_said_and_the_others_carry_on(course):
    for name in ("02_b.ipynb", "03_c.ipynb", "04_d.ipynb"):
        write(course / "lessons", lesson_cells(), name)
    copy_lessons(course / "lessons", course / "work")
    (course / "work" / "02_b.ipynb").write_text('{"cells": [')
    (course / "work" / ".originals" / "03_c.ipynb").unlink()
    write(course / "lessons", lesson_cells(), "05_e.ipynb")
    for name in ("01_a.ipynb", "02_b.ipynb"):
        write(course / "lessons", lesson_cells()[:-1], name)
    said, problems = update_lessons(course / "lessons", course / "work")
    assert said[0] == "05_e.ipynb: copied into work/."
    assert said[1].startswith("01_a.ipynb: 1 cell removed")
    assert said[2] == "04_d.ipynb: up to date."
    assert "02_b.ipynb stays as it is" in problems[0] and "workbook reset 02" in problems[0]
    assert "03_c.ipynb stays as it is" in problems[1] and len(problems) == 2
    assert not any("\n" in problem for problem in problems)
    assert (course / "work" / "02_b.ipynb").read_text() == '{"cells": ['


def test_reset_copy_is_up_to_date(course):
    changed_lesson(course, end=None)
    reset_lesson("01", course / "lessons", course / "work")
    assert update(course) == ["01_a.ipynb: up to date."]


@pytest.mark.parametrize(
    ("mine", "new", "merged"),
    [
        ("a\nB\nc", "a\nb\nc\nd", "a\nB\nc\nd"),
        ("a\nB\nc", "a\nb\nc", "a\nB\nc"),
        ("a\nx\nb\nc", "a\nx\nb\nc", "a\nx\nb\nc"),
        ("a\nB\nc", "a\nX\nc", None),
        ("a\nx\nb\nc", "a\ny\nb\nc", None),
        ("", "a\nb\nc\nd", None),
    ],
)
def test_merge_lines(mine, new, merged):
    assert merge_lines("a\nb\nc", mine, new) == merged


def test_verb_says_what_happened(course, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ROOT", course)
    assert cli.run_command(["update"]) == 0
    assert capsys.readouterr().out == "01_a.ipynb: up to date.\n"
    changed_lesson(course, end=None)
    assert cli.run_command(["update"]) == 0
    assert "1 cell removed" in (said := capsys.readouterr().out) and "Reload" in said
    changed_lesson(course)
    (course / "work" / "01_a.ipynb").write_text("torn")
    assert cli.run_command(["update"]) == 1
    assert "cannot be read as a notebook" in capsys.readouterr().err
