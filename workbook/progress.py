"""What a learner has done, as evidence in JSON files: `.progress/01.json` beside the notebook.

An entry says what was seen (hash of the code, version of the check, outcome), so that "done" is
computed from evidence and a changed check asks for a new run. Nothing here is a flag.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from workbook.panel import Panel, count, note

SECTIONS = ("exercises", "hints", "references", "answers", "predictions", "observations")
_current = {"lesson": None}


def course_root() -> Path:
    """The folder that holds `workbook/`, `solutions/` and `tests/` (WORKBOOK_ROOT in tests)."""
    return Path(os.environ.get("WORKBOOK_ROOT") or Path(__file__).resolve().parents[1])


def run_root() -> Path:
    """`runs/`, or the folder that WORKBOOK_RUNS names."""
    return Path(os.environ.get("WORKBOOK_RUNS") or course_root() / "runs")


def progress_folder() -> Path:
    """`.progress` in the notebook's folder; WORKBOOK_PROGRESS names another."""
    return Path(os.environ.get("WORKBOOK_PROGRESS") or Path.cwd() / ".progress")


def set_lesson(lesson: str) -> None:
    """Name the lesson of this kernel; `predict` records under it."""
    _current["lesson"] = lesson


def current_lesson() -> str:
    """The lesson of this kernel.

    Raises: RuntimeError before the lesson's first cell has run.
    """
    if _current["lesson"] is None:
        raise RuntimeError("Run the first cell of the lesson: it says which lesson this is.")
    return _current["lesson"]


def digest(text: str) -> str:
    """A short hash of a text: what evidence stores instead of code."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(lesson: str, folder: Path | None = None) -> dict:
    """The evidence of one lesson; a file that is not JSON is set aside, never lost."""
    path = (folder or progress_folder()) / f"{lesson}.json"
    empty = {section: {} for section in SECTIONS}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return empty
    except ValueError:
        os.replace(path, path.with_suffix(".broken"))
        return empty
    return empty | {key: value for key, value in stored.items() if isinstance(value, dict)}


def record(lesson: str, section: str, key: str, value: object) -> None:
    """Store one entry; a crash leaves the old file whole."""
    evidence = load(lesson)
    evidence[section][key] = value
    write_json(progress_folder() / f"{lesson}.json", evidence)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, with a final newline."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def record_check(lesson: str, exercise: str, outcome: str, code: str, version: str) -> None:
    """Store the outcome of a check with the hash of the code and the version of the check."""
    entry = {"outcome": outcome, "code": code, "check": version, "time": _now()}
    record(lesson, "exercises", exercise, entry)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def lesson_state(lesson: str, folder: Path | None = None) -> list[tuple[str, str]]:
    """(exercise, state) for each exercise: "done", "reference", "not yet", "check again" or "-"."""
    from workbook.hints import lesson_help  # which records through this module
    from workbook.properties import check_version

    evidence = load(lesson, folder)
    states = []
    for name in lesson_help(lesson).exercises:
        entry = evidence["exercises"].get(name)
        states.append((name, _state(entry, name in evidence["references"], check_version(lesson))))
    return states


def _state(entry: dict | None, took_reference: bool, version: str) -> str:
    outcome = entry["outcome"] if entry else None
    if outcome == "passed":
        return "done" if entry["check"] == version else "check again"
    if took_reference or outcome == "reference":
        return "reference"
    return "not yet" if outcome in ("failed", "raised") else "-"


def progress(lesson: str | None = None) -> Panel:
    """A small dashboard of a lesson's exercises, questions and predictions."""
    lesson = lesson or current_lesson()
    states = lesson_state(lesson)
    evidence = load(lesson)
    done = sum(state == "done" for _, state in states)
    right = sum(entry["right"] for entry in evidence["answers"].values())
    headline = f"Lesson {lesson}: {done} of {count(len(states), 'exercise')} done, "
    headline += f"{count(right, 'question')} right"
    if done == len(states) > 0:
        headline += ". You have finished its core path."
    return note(headline, *[(name, _in_words(state)) for name, state in states])


def _in_words(state: str) -> str:
    words = {
        "done": "✓ done",
        "reference": "○ the reference stands in",
        "not yet": "✗ written, its check does not pass yet",
        "check again": "… passed an older check: run the check again",
        "-": "– not attempted",
    }
    return words[state]


def show(folder: Path | None = None) -> str:
    """The text of `workbook progress`: one line a lesson and one an exercise."""
    from workbook.hints import lessons_with_help

    folder = folder or course_root() / "work" / ".progress"
    lines = []
    for lesson in lessons_with_help():
        states = lesson_state(lesson, folder)
        done = sum(state == "done" for _, state in states)
        lines.append(f"Lesson {lesson}: {done} of {count(len(states), 'exercise')} done")
        lines += [f"  {name:<24} {_in_words(state)}" for name, state in states]
    return "\n".join(lines)
