"""Hints, references, questions, predictions and the progress that is derived from evidence."""

import json
import sys

import pytest

from tests.workbook.toy_course import make_course
from workbook.answers import answer, observed, predict
from workbook.check import check
from workbook.dashboard import lesson_state, progress, show
from workbook.hints import CourseFileError, hint, lesson_help, use_reference
from workbook.progress import load, record, set_lesson


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    root = make_course(tmp_path)
    monkeypatch.setenv("WORKBOOK_ROOT", str(root))
    monkeypatch.setenv("WORKBOOK_PROGRESS", str(root / "work" / ".progress"))
    set_lesson("90")
    return root


def right(text):
    words = [word for word in text.split() if word.isdigit()]
    return words[-1] if words else None


def test_progress_is_derived_from_evidence_and_follows_the_check(course):
    assert dict(lesson_state("90"))["last_number"] == "-"
    check(lambda text: None, "last_number")
    assert dict(lesson_state("90"))["last_number"] == "not yet"
    check(right, "last_number")
    assert dict(lesson_state("90"))["last_number"] == "done"
    entry = load("90")["exercises"]["last_number"]
    assert set(entry) == {"outcome", "code", "check", "time"} and len(entry["code"]) == 16
    checks = course / "tests" / "lessons" / "test_90_toy.py"
    checks.write_text(checks.read_text() + "\n# a new check\n")
    assert dict(lesson_state("90"))["last_number"] == "check again"


def test_a_later_failure_takes_the_pass_back():
    check(right, "last_number")
    check(lambda text: "1", "last_number")
    assert dict(lesson_state("90"))["last_number"] == "not yet"


def test_the_reference_counts_as_the_reference(capsys):
    function = use_reference("last_number")
    assert function("6 + 12 = 18") == "18" and "course's own" in capsys.readouterr().out
    assert dict(lesson_state("90"))["last_number"] == "reference"
    check(right, "last_number")
    assert dict(lesson_state("90"))["last_number"] == "done"


def test_the_hint_ladder_follows_the_last_check_and_is_recorded():
    check(right, "last_number")
    assert ("hint", "Look at the end.") in hint(1).rows
    assert "re.findall" in dict(hint(3).rows)["hint"]
    hint(2)
    assert load("90")["hints"] == {"last_number": 3}
    assert "three hints" in hint(4).headline
    assert "Texts differ." in repr(hint(1, "is_equivalent"))


def test_answers_show_the_question_then_say_right_or_why_not():
    blank = answer("90-1", "?")
    assert blank.headline == "Which number is the answer?" and ("b", "the last") in blank.rows
    assert load("90")["answers"] == {}
    wrong = answer("90-1", "a")
    assert wrong.kind == "failed" and ("but", "The first is a step.") in wrong.rows
    assert "The steps come first." not in repr(wrong)
    assert answer("90-1", "b").kind == "right"
    assert load("90")["answers"]["90-1"] == {"choice": "b", "right": True}
    assert "none of the choices a, b" in answer("90-1", "z").headline
    with pytest.raises(CourseFileError, match='no question "90-7"'):
        answer("90-7", "a")


def test_predictions_are_compared_with_what_was_observed():
    assert "Before you run on" in predict("the score").headline
    assert "no prediction" in predict("the score", "explodes").headline
    assert load("90")["predictions"] == {}
    predict("the score", "falls")
    assert observed("the score", "falls").kind == "right"
    assert "You predicted: falls" in observed("the score", "rises").headline
    assert observed("the length", "rises").headline.endswith("You made no prediction.")


def test_the_dashboard_and_the_console_say_the_same():
    assert show() == "Not begun yet: 90"
    check(right, "last_number")
    hint(2, "is_equivalent")
    answer("90-1", "b")
    predict("the score <b>", "falls")
    observed("the score <b>", "rises")
    board = progress()
    assert board.headline == "Lesson 90: 1 of 2 exercises done, 1 of 1 question right"
    assert show() == repr(board)
    for part in (
        "✓ last_number              done\n",
        "– is_equivalent            not attempted, 2 hints used\n",
        "questions: 90-1 ✓\n",
        "prediction: the score <b>: falls; it came out: rises",
    ):
        assert part in repr(board)
    page = board._repr_html_()
    assert "The last number" in page and "2 hints used" in page and "90-1 ✓" in page
    assert "the score &lt;b&gt;: falls" in page and "<b>: falls" not in page


def test_a_function_changed_after_its_pass_asks_for_a_new_check(monkeypatch):
    notebook = vars(sys.modules["__main__"])
    monkeypatch.setitem(notebook, "last_number", right)
    check("last_number")
    assert progress().exercises[0].state == "done"
    monkeypatch.setitem(notebook, "last_number", lambda text: None)
    assert progress().exercises[0].state == "check again"
    monkeypatch.delitem(notebook, "last_number")  # the kernel was restarted
    assert progress().exercises[0].state == "done"


def test_all_done_is_the_end_of_the_core_path():
    check(right, "last_number")
    check(lambda one, other: float(one) == float(other), "is_equivalent")
    assert "2 of 2 exercises done" in progress().headline
    assert progress().headline.endswith("You have finished its core path.")


def test_exercises_behind_the_core_path_count_apart(course):
    path = course / "workbook" / "hints" / "90.yaml"
    text = path.read_text(encoding="utf-8")
    title = "  is_equivalent:\n"
    path.write_text(text.replace(title, title + "    further: true\n"), encoding="utf-8")
    check(right, "last_number")
    done = "1 of 1 exercise done, 0 of 1 further ones, 0 of 1 question right"
    assert progress().headline == f"Lesson 90: {done}. You have finished its core path."


def test_a_torn_progress_file_is_set_aside(course):
    record("90", "answers", "90-1", {"choice": "b", "right": True})
    path = course / "work" / ".progress" / "90.json"
    path.write_text(path.read_text()[:-20])
    assert load("90")["answers"] == {}
    assert path.with_suffix(".broken").exists()
    record("90", "hints", "last_number", 1)
    assert json.loads(path.read_text())["hints"] == {"last_number": 1}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("hints: [Texts differ., ", "hints: [", "90.yaml: exercises.is_equivalent.hints: .*3"),
        ("    learnt: Values are compared, not texts.\n", "", "learnt: Field required"),
        ("helpers.rewards.last_number", "os.system", "last_number.reference: "),
        ('lesson: "90"', 'lesson: "90', "this is not YAML"),
        ("texts.", "texts #1", 'line 11: put the text with " #" in quotes'),
    ],
)
def test_a_bad_hints_file_is_answered_by_field(course, old, new, says):
    path = course / "workbook" / "hints" / "90.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CourseFileError, match=says) as caught:
        lesson_help("90")
    assert "\n" not in str(caught.value)
