"""What a learner does not wait for: results of the course's own run at depth full.

`solutions/recorded/NN.json` holds the findings of that run and, under "parts", the results of its
longer cells. `python3 -m workbook run 03 --depth full --record` writes it.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers.text_files import read_json
from workbook.check import code_hash
from workbook.hints import lesson_help, lessons_with_help
from workbook.profiles import active_profile
from workbook.progress import course_root, current_lesson, digest, run_root, write_json


def recorded_file(lesson: str) -> Path:
    """`solutions/recorded/NN.json`."""
    return course_root() / "solutions" / "recorded" / f"{lesson}.json"


def read_recorded(lesson: str) -> dict:
    """The recorded findings of a lesson, with its "parts"; empty where none were recorded."""
    path = recorded_file(lesson)
    return read_json(path) if path.exists() else {}


def recorded_or_live(name: str, run: Callable[[], object]):
    """The result of a long part of a lesson: recorded at depth short, run at full and smoke.

    Returns plain JSON values (keys are texts) and prints which of the two it is. At full a result
    is kept, so that a run that was stopped goes on where it was; it is for the part's own code,
    the profile and the learner's functions as they were. Where nothing is recorded for the
    profile, the part runs.

    Example: `sweep = recorded_or_live("sweep", lambda: {n: accuracy(n) for n in sizes})`
    """
    profile, lesson = active_profile(), current_lesson()
    stored = read_recorded(lesson)
    if profile.depth == "short" and profile.name == stored.get("profile"):
        if name in stored.get("parts", {}):
            print(
                f"Recorded: {name} is drawn from the course's own run. To run it here: "
                f"python3 -m workbook run {lesson} --depth full"
            )
            return stored["parts"][name]
    path = _parts_file(lesson, profile)
    parts = read_json(path) if path.exists() else {}
    key = _state_of(run, profile, lesson)
    if profile.depth != "full" or parts.get(name, {}).get("code") != key:
        parts[name] = {"code": key, "value": json.loads(json.dumps(run(), allow_nan=False))}
        write_json(path, parts)
    return parts[name]["value"]


def _state_of(run: Callable, profile, lesson: str) -> str:
    """A hash of what a part's result hangs on: its code, the numbers and texts that it reads,
    the settings, the learner's functions."""
    notebook = vars(sys.modules["__main__"])
    exercises = lesson_help(lesson).exercises if lesson in lessons_with_help() else ()
    mine = [code_hash(notebook[name]) for name in exercises if name in notebook]
    values = [f"{name} {text}" for name, text in _values_read(run)]
    return digest("\n".join([inspect.getsource(run), profile.model_dump_json(), *mine, *values]))


def _values_read(run: Callable) -> Iterator[tuple[str, str]]:
    """The numbers, texts and tuples of the notebook that a part reads; a list may be its log."""
    used = inspect.getclosurevars(run)
    for name, value in sorted({**used.globals, **used.nonlocals}.items()):
        shown = repr(value) if isinstance(value, (bool, int, float, str, tuple)) else ""
        if shown and " at 0x" not in shown:  # an address is another one in every process
            yield name, shown


def _parts_file(lesson: str, profile) -> Path:
    return run_root() / lesson / f"{profile.name}-{profile.depth}" / "parts.json"


def record(lesson: str, findings: dict, runs: Path | None = None) -> Path:
    """Write the findings of a run at depth full and its parts as the recorded ones.

    Raises: ValueError for a run at another depth.
    """
    if findings["depth"] != "full":
        raise ValueError(f"Lesson {lesson}: only a run at depth full is recorded (--depth full).")
    path = (runs or run_root()) / lesson / f"{findings['profile']}-full" / "parts.json"
    parts = read_json(path) if path.exists() else {}
    values = {name: part["value"] for name, part in parts.items()}
    write_json(recorded_file(lesson), findings | {"parts": values})
    return recorded_file(lesson)
