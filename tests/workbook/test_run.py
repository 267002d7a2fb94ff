"""A toy lesson executed for real: solution, untouched lesson, findings, failures in a sentence."""

import io
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from tests.workbook.toy_course import make_course
from workbook.build import build, find_source, read_source
from workbook.profiles import ProfileError
from workbook.run import RunError, chosen, execute, run_lessons

CODE = Path(__file__).resolve().parents[2]


@pytest.fixture
def course(tmp_path, monkeypatch):
    root = make_course(tmp_path / "a course")
    monkeypatch.setenv("WORKBOOK_ROOT", str(root))
    for name in ("WORKBOOK_PROFILE", "WORKBOOK_DEPTH", "WORKBOOK_RUNS", "WORKBOOK_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    return root


def edit(root, old, new):
    path = root / "solutions" / "90_toy.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def texts(cell) -> str:
    return "".join(o.get("text") or o["data"]["text/plain"] for o in cell.get("outputs", []))


def test_a_run_writes_findings_merges_them_and_leaves_the_sources_alone(course):
    target = course / "out.json"
    target.write_text('{"lessons": {"02": {"x": 1}}, "other": 2}', encoding="utf-8")
    console = Console(file=io.StringIO(), width=160)
    found = run_lessons(["90"], depth="smoke", json_file=target, console=console)
    stored = json.loads(target.read_text(encoding="utf-8"))
    assert stored["other"] == 2 and stored["lessons"]["02"] == {"x": 1}
    assert stored["lessons"]["90"] == found["90"]
    facts = {"profile": "tiny", "depth": "smoke", "seeds": [0], "strict_accuracy": 1.0}
    assert facts.items() <= found["90"].items() and found["90"]["seconds"] >= 0
    assert (course / "runs" / "90" / "tiny-smoke" / "findings.json").exists()
    assert "Lesson 90: tiny, smoke" in console.file.getvalue()
    assert not (course / "solutions" / "90_toy.ipynb").exists()  # only `build --execute` writes it


def test_an_executed_solution_passes_its_checks_and_is_not_stale(course):
    assert build(execute=True, depth="smoke") == []
    assert build(check=True) == []
    notebook = nbformat.read(course / "solutions" / "90_toy.ipynb", as_version=4)
    shown = [texts(cell) for cell in notebook.cells]
    assert sum(text.startswith("Passed: ") for text in shown) == 2
    assert "2 of 2 exercises done" in shown[-1] and "only in the solution\n" in shown
    assert notebook.metadata["workbook"]["depth"] == "smoke"


def test_run_all_on_an_untouched_lesson_gives_no_traceback(course):
    build()
    notebook = nbformat.read(course / "lessons" / "90_toy.ipynb", as_version=4)
    (course / "work").mkdir()
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    with client.setup_kernel(env=os.environ | {"PYTHONPATH": str(CODE)}, cwd=str(course / "work")):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    shown = [texts(cell) for cell in notebook.cells]
    assert sum(text.startswith("Not attempted: ") for text in shown) == 2
    needs = next(text for text in shown if text.startswith("This cell needs"))
    assert needs == (
        "This cell needs last_number (exercise 1) and is_equivalent (exercise 2): "
        'write them above, or go on with last_number = use_reference("last_number")'
    )
    assert "0 of 2 exercises done" in shown[-1]
    assert (course / "work" / ".progress" / "90.json").exists()


def test_a_failing_cell_is_named_with_its_heading(course):
    edit(course, "    right = is_equivalent", "    right = 1 / 0  # is_equivalent")
    with pytest.raises(RunError) as caught:
        run_lessons(["90"], console=Console(file=io.StringIO()))
    where = 'Lesson 90 stopped in cell 11 of 13 (under "The run"): '
    assert str(caught.value) == where + "ZeroDivisionError: division by zero"


def test_a_kernel_that_dies_is_said(course):
    edit(course, 'print("only in the solution")', "import os; os._exit(1)")
    with pytest.raises(RunError, match="its kernel died"):
        run_lessons(["90"], console=Console(file=io.StringIO()))


def test_a_lesson_that_saves_nothing_is_said(course):
    edit(course, "    save_findings(", "    print(")
    edit(course, ", seeds=[0])", ")")
    with pytest.raises(RunError, match="save_findings"):
        run_lessons(["90"], console=Console(file=io.StringIO()))


def test_profile_and_depth_come_from_the_environment_unless_given(monkeypatch):
    monkeypatch.delenv("WORKBOOK_PROFILE", raising=False)
    monkeypatch.setenv("WORKBOOK_DEPTH", "smoke")
    assert chosen(None, None) == ("tiny", "smoke") and chosen("small", "full") == ("small", "full")


def test_an_unknown_depth_or_profile_is_said_before_anything_is_written(course):
    source = read_source(find_source("90"))
    for names in ((None, "foo"), ("huge", None)):
        with pytest.raises(ProfileError, match="take one of"):
            execute(source, *names)
    assert not (course / "runs").exists()


def test_bad_settings_and_files_fail_before_a_kernel_starts(course, monkeypatch):
    monkeypatch.setattr("workbook.run.execute", lambda *_: pytest.fail("a kernel was started"))
    with pytest.raises(ProfileError):
        run_lessons(["90"], profile="huge")
    with pytest.raises(ProfileError):
        run_lessons(["90"], overrides=["sampling.temprature=1"])
    broken = course / "broken.json"
    broken.write_text('{"lessons": ', encoding="utf-8")
    with pytest.raises(RunError, match="is not JSON"):
        run_lessons(["90"], json_file=broken)
    assert broken.read_text(encoding="utf-8") == '{"lessons": '
