"""What is done of a lesson, as a learner sees it: `progress()` and `workbook progress`.

Everything is computed from the evidence in `.progress/` (workbook/progress.py): what the checks
saw, which hints and references were used, what was answered and predicted.
"""

import html
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from workbook.answers import lesson_questions
from workbook.check import code_hash
from workbook.hints import lesson_help, lessons_with_help
from workbook.panel import count
from workbook.progress import course_root, current_lesson, load
from workbook.properties import check_version

STATES = {  # state: (mark, colour, words); the mark and the words say it without the colour
    "done": ("✓", "#1a7f5a", "done"),
    "reference": ("○", "#2b6cb0", "the reference stands in"),
    "not yet": ("✗", "#b3541e", "its check does not pass yet"),
    "check again": ("↻", "#8a6d00", "it or its check has changed: check again"),
    "-": ("–", "#c9ced6", "not attempted"),
}
ANSWERS = {"right": ("✓", "#1a7f5a"), "wrong": ("✗", "#b3541e"), "open": ("–", "#c9ced6")}


@dataclass(frozen=True)
class ExerciseRow:
    """One exercise: its function's name, title, state (a key of STATES) and highest hint taken.

    further: it stands behind the core path.
    """

    name: str
    title: str
    state: str
    hints: int
    further: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A lesson's exercises, questions {name: "right" | "wrong" | "open"} and predictions
    [(what, predicted, came out or None)]; HTML in a notebook, text elsewhere."""

    lesson: str
    exercises: list[ExerciseRow]
    questions: dict[str, str]
    predictions: list[tuple[str, str, str | None]]

    @property
    def headline(self) -> str:
        """Example: "Lesson 01: 2 of 5 exercises done, 1 of 4 questions right"."""
        core = [row for row in self.exercises if not row.further]
        done = sum(row.state == "done" for row in core)
        says = f"Lesson {self.lesson}: {done} of {count(len(core), 'exercise')} done"
        if len(core) < len(self.exercises):
            extra = sum(row.state == "done" for row in self.exercises) - done
            says += f", {extra} of {len(self.exercises) - len(core)} further ones"
        if self.questions:
            right = sum(state == "right" for state in self.questions.values())
            says += f", {right} of {count(len(self.questions), 'question')} right"
        finished = done == len(core) > 0
        return says + (". You have finished its core path." if finished else "")

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to show."""
        tried = any(row.state != "-" or row.hints for row in self.exercises)
        answered = any(state != "open" for state in self.questions.values())
        return tried or answered or bool(self.predictions)

    def __repr__(self) -> str:
        lines = [self.headline]
        for row in self.exercises:
            mark, _, words = STATES[row.state]
            lines.append(f"  {mark} {row.name:<24} {words}{_hints(row)}")
        if any(state != "open" for state in self.questions.values()):
            said = [f"{name} {ANSWERS[state][0]}" for name, state in self.questions.items()]
            lines.append("  questions: " + "  ".join(said))
        lines += ["  prediction: " + _in_words(*one) for one in self.predictions]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        segments = "".join(
            f"<div title='{row.name}' style='flex:1;background:{STATES[row.state][1]}'></div>"
            for row in self.exercises
        )
        bar = f"display:flex;gap:3px;height:8px;max-width:{8 * len(self.exercises)}em;margin:.6em 0"
        return (
            "<div role='status' style='border:1px solid #c9ced6;border-radius:6px;background:#fff;"
            f"color:#1c1f24;padding:.8em 1em;max-width:60em'><b>{html.escape(self.headline)}</b>"
            f"<div aria-hidden='true' style='{bar}'>{segments}</div>"
            f"<table style='margin:0;border:0;font-size:inherit;color:#1c1f24'>"
            f"{''.join(_exercise_html(row) for row in self.exercises)}</table>"
            f"{self._questions_html()}{self._predictions_html()}</div>"
        )

    def _questions_html(self) -> str:
        chips = "".join(
            f"<span style='border:1px solid {ANSWERS[state][1]};border-radius:4px;padding:0 .5em;"
            f"margin-right:.5em;white-space:nowrap'>{html.escape(name)} {ANSWERS[state][0]}</span>"
            for name, state in self.questions.items()
        )
        return f"<div style='margin-top:.7em'>Questions: {chips}</div>" if chips else ""

    def _predictions_html(self) -> str:
        lines = "".join(
            f"<div style='margin-top:.3em'>Prediction: {html.escape(_in_words(*one))}</div>"
            for one in self.predictions
        )
        return f"<div style='margin-top:.7em'>{lines}</div>" if lines else ""


def _exercise_html(row: ExerciseRow) -> str:
    mark, colour, words = STATES[row.state]
    cell = "border:0;padding:.15em 1em .15em 0;text-align:left;vertical-align:top"
    code = "color:#5b6270;background:transparent;padding:0"
    ink = "#5b6270" if row.state == "-" else colour
    return (
        f"<tr style='background:transparent'><td style='{cell};color:{ink}'><b>{mark}</b></td>"
        f"<td style='{cell}'>{html.escape(row.title)}<br>"
        f"<code style='{code}'>{html.escape(row.name)}</code></td>"
        f"<td style='{cell};color:{ink}'>{words}</td>"
        f"<td style='{cell};color:#5b6270'>{_hints(row).lstrip(', ')}</td></tr>"
    )


def _hints(row: ExerciseRow) -> str:
    return f", {count(row.hints, 'hint')} used" if row.hints else ""


def _in_words(what: str, guess: str, outcome: str | None) -> str:
    return f"{what}: {guess}" + (f"; it came out: {outcome}" if outcome else " (not run yet)")


def dashboard(lesson: str, folder: Path | None = None) -> Dashboard:
    """What is done of a lesson, from the evidence in `folder` (default: beside the notebook)."""
    evidence = load(lesson, folder)
    rows = [
        ExerciseRow(name, entry.title, state, evidence["hints"].get(name, 0), entry.further)
        for (name, state), entry in zip(
            lesson_state(lesson, folder), lesson_help(lesson).exercises.values(), strict=True
        )
    ]
    answers = evidence["answers"]
    questions = {
        name: ("right" if answers[name]["right"] else "wrong") if name in answers else "open"
        for name in lesson_questions(lesson)
    }
    predictions = [
        (what, guess, evidence["observations"].get(what))
        for what, guess in evidence["predictions"].items()
    ]
    return Dashboard(lesson, rows, questions, predictions)


def lesson_state(lesson: str, folder: Path | None = None) -> list[tuple[str, str]]:
    """(exercise, state) for each exercise; the states are the keys of STATES."""
    evidence, version = load(lesson, folder), check_version(lesson)
    return [
        (name, _state(evidence["exercises"].get(name), name in evidence["references"], version))
        for name in lesson_help(lesson).exercises
    ]


def _state(entry: dict | None, took_reference: bool, version: str) -> str:
    outcome = entry["outcome"] if entry else None
    if outcome == "passed":
        return "done" if entry["check"] == version else "check again"
    if took_reference or outcome == "reference":
        return "reference"
    return "not yet" if outcome in ("failed", "raised") else "-"


def progress(lesson: str | None = None) -> Dashboard:
    """What is done of this lesson: exercises, questions, predictions.

    A function that is no longer the one whose check passed asks for a new check.
    """
    lesson = lesson or current_lesson()
    evidence, notebook = load(lesson), vars(sys.modules["__main__"])

    def still_true(row: ExerciseRow) -> ExerciseRow:
        kept = row.name not in notebook or row.name in evidence["references"]
        if kept or row.state != "done":
            return row
        same = code_hash(notebook[row.name]) == evidence["exercises"][row.name]["code"]
        return row if same else replace(row, state="check again")

    board = dashboard(lesson)
    return replace(board, exercises=[still_true(row) for row in board.exercises])


def show(folder: Path | None = None) -> str:
    """The text of `workbook progress`: each lesson that is begun, and the others in one line."""
    folder = folder or course_root() / "work" / ".progress"
    boards = [dashboard(lesson, folder) for lesson in lessons_with_help()]
    lines = [repr(board) for board in boards if board.is_begun]
    later = ", ".join(board.lesson for board in boards if not board.is_begun)
    return "\n".join([*lines, *([f"Not begun yet: {later}"] if later else [])])
