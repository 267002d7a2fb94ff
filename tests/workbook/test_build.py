"""`workbook build`: blanks as nbgrader gives them, the same bytes each time, staleness found."""

import json

import nbformat
import pytest

from tests.workbook.toy_course import make_course
from workbook.build import (
    BuildError,
    blank_source,
    build,
    find_source,
    helpers_hash,
    lesson_notebook,
    read_source,
    solution_functions,
    to_text,
)

EXERCISE = '''def f(x):
    """Twice x."""
    if x:
        ### BEGIN SOLUTION
        y = 2 * x

        return y
        ### END SOLUTION
    return 0'''

BLANK = '''def f(x):
    """Twice x."""
    if x:
        # YOUR CODE HERE
        raise NotImplementedError()
    return 0'''


@pytest.fixture
def course(tmp_path, monkeypatch):
    root = make_course(tmp_path)
    monkeypatch.setenv("WORKBOOK_ROOT", str(root))
    return root


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_marked_region_becomes_the_stub_with_its_indentation():
    assert blank_source(EXERCISE) == BLANK


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("### BEGIN SOLUTION\nx = 1", "has no END SOLUTION"),
        ("x = 1\n### END SOLUTION", "without a BEGIN"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "inside a solution"),
    ],
)
def test_a_mark_without_its_partner_is_named(source, says):
    with pytest.raises(BuildError, match=says):
        blank_source(source, "01_x.py, cell 3")


def test_the_lesson_has_blanks_and_no_solution(course):
    assert build() == []
    text = (course / "lessons" / "90_toy.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    sources = {cell.id: cell.source for cell in notebook.cells}
    assert sources["last_number"].endswith("    # YOUR CODE HERE\n    raise NotImplementedError()")
    assert "SOLUTION" not in text and "re.findall" not in text and "solution-only" not in text
    assert 'predict("the score", "?")' in sources.values()
    assert 'answer("90-1", "?")' in sources.values()
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert notebook.cells[4].metadata["nbgrader"]["solution"] is True
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_two_builds_give_the_same_bytes_and_ids_do_not_depend_on_the_place(course):
    build()
    path = course / "lessons" / "90_toy.ipynb"
    first = path.read_bytes()
    path.unlink()
    build()
    assert path.read_bytes() == first
    before = {cell["id"] for cell in json.loads(first)["cells"]}
    assert len(before) == len(json.loads(first)["cells"])
    edit(course / "solutions" / "90_toy.py", "# %% [markdown]\n# ## The run",
         "# %% [markdown]\n# A new cell.\n\n# %% [markdown]\n# ## The run")
    build()
    after = {cell["id"] for cell in json.loads(path.read_bytes())["cells"]}
    assert before < after and len(after - before) == 1


def test_check_finds_a_lesson_that_is_not_its_source(course):
    assert any("lessons/90_toy.ipynb is missing" in p for p in build(check=True))
    build()
    lesson = course / "lessons" / "90_toy.ipynb"
    assert not any("lessons/" in problem for problem in build(check=True))
    edit(lesson, "YOUR CODE", "MY CODE")
    assert "lessons/90_toy.ipynb is not what its source builds" in build(check=True)[0]
    assert "MY CODE" in lesson.read_text(encoding="utf-8")  # a check writes nothing


def executed(course, **made):
    """An executed solution as `build --execute` would store it, without running a kernel."""
    source = read_source(find_source("90"))
    facts = {"code": source.code_hash, "helpers": helpers_hash(source), "profile": "tiny"} | made
    source.notebook.metadata["workbook"] = facts
    path = course / "solutions" / "90_toy.ipynb"
    path.write_text(to_text(source.notebook), encoding="utf-8")
    return path


def test_check_finds_a_stale_solution_by_its_hashes(course):
    build()
    assert "solutions/90_toy.ipynb is missing" in build(check=True)[0]
    executed(course)
    assert build(check=True) == []
    (course / "helpers" / "rewards.py").write_text("import helpers.deep\n", encoding="utf-8")
    assert "executed with other helpers" in build(check=True)[0]
    executed(course)
    (course / "helpers" / "deep.py").write_text("X = 2\n", encoding="utf-8")
    assert "executed with other helpers" in build(check=True)[0]
    executed(course)
    (course / "helpers" / "method.py").write_text("X = 2\n", encoding="utf-8")  # not this lesson's
    assert build(check=True) == []
    executed(course)
    edit(course / "solutions" / "90_toy.py", "float(prediction)", "float(str(prediction))")
    build()
    assert "executed from other code" in build(check=True)[0]


def test_words_may_change_without_a_new_execution(course):
    executed(course)
    edit(course / "solutions" / "90_toy.py", "# Two exercises.", "# Two short exercises.")
    build()
    assert build(check=True) == []


def test_check_finds_an_error_output(course):
    build()
    path = executed(course)
    notebook = nbformat.read(path, as_version=4)
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    notebook.cells[1].outputs.append(error)
    path.write_text(to_text(notebook), encoding="utf-8")
    assert "cell 2 holds an error" in build(check=True)[0]


def test_an_exercise_without_hints_checks_or_reference_is_named(course):
    edit(course / "workbook" / "hints" / "90.yaml", "  is_equivalent:", "  is_equal:")
    edit(course / "workbook" / "hints" / "90.yaml", "rewards.last_number", "rewards.lost_number")
    edit(course / "tests" / "lessons" / "test_90_toy.py", "test_last_number__", "test_last__")
    problems = build()
    assert any("is_equivalent has no entry in workbook/hints/90.yaml" in p for p in problems)
    assert any("last_number has no test_last_number__" in p for p in problems)
    assert any("last_number, helpers.rewards.lost_number, is not there" in p for p in problems)
    assert any("is_equal is no exercise of the lesson" in p for p in problems)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"grade_id": "is_equivalent"', '"grade_id": "last_number"', "is used twice"),
        ('"locked": false, ', "", "metadata lack locked"),
        ("# %%\ncheck(last_number)", "# %%\n### BEGIN SOLUTION\nx = 1", "outside an exercise"),
        ("    ### BEGIN SOLUTION\n    found", "    found", "has no ### BEGIN SOLUTION"),
    ],
)
def test_a_bad_source_is_named_with_its_cell(course, old, new, says):
    edit(course / "solutions" / "90_toy.py", old, new)
    with pytest.raises(BuildError, match=says) as caught:
        build()
    assert "90_toy.py, cell" in str(caught.value)


def test_an_unknown_lesson_is_answered_with_those_that_exist(course):
    with pytest.raises(BuildError, match='no lesson "07"; there are: 90'):
        build(lessons=["07"])


def test_the_solutions_own_functions_are_reached_without_running_the_lesson(course):
    functions = solution_functions(find_source("90"))
    assert set(functions) == {"last_number", "is_equivalent"}
    assert functions["last_number"]("6 + 12 = 18") == "18"
    assert not (course / "runs").exists()


def test_building_a_lesson_does_not_change_the_source_that_was_read(course):
    source = read_source(find_source("90"))
    before = to_text(source.notebook)
    lesson_notebook(source)
    assert to_text(source.notebook) == before
