"""What a learner has done, as evidence in JSON files: `.progress/01.json` beside the notebook.

An entry says what was seen (hash of the code, version of the check, outcome), so that "done" is
computed from evidence and a changed check asks for a new run. Nothing here is a flag.
"""

import hashlib
import json
import os
import time
from pathlib import Path

SECTIONS = ("exercises", "hints", "references", "answers", "predictions", "observations")
_current = {"lesson": None}


def course_root() -> Path:
    """The folder that holds `workbook/`, `solutions/` and `tests/` (WORKBOOK_ROOT in tests)."""
    return Path(os.environ.get("WORKBOOK_ROOT") or Path(__file__).resolve().parents[1])


def in_course(name: str) -> str:
    """A folder of the course, wherever a command is given; else the name as it is."""
    inside = course_root() / name
    return str(inside) if inside.is_dir() else name


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
    """The evidence of one lesson; a file that is no JSON object is set aside, never lost."""
    path = (folder or progress_folder()) / f"{lesson}.json"
    empty = {section: {} for section in SECTIONS}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return empty
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        os.replace(path, path.with_suffix(".broken"))
        return empty
    return empty | {key: value for key, value in stored.items() if isinstance(value, dict)}


def record(lesson: str, section: str, key: str, value: object) -> None:
    """Store one entry; a crash leaves the old file whole."""
    evidence = load(lesson)
    evidence[section][key] = value
    write_json(progress_folder() / f"{lesson}.json", evidence)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: beside its place, handed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
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
