"""The exercises of a lesson, their hints, and the reference that may stand in for each.

`workbook/hints/NN.yaml` names them; the order is the order of the lesson:

    lesson: "01"
    exercises:
      extract_answer:
        title: Answer extraction
        reference: helpers.rewards.extract_answer
        learnt: The last answer counts, and a refusal is None, not an empty string.
        hints:
          - Look at ...
          - The idea is ...
          - Write ...

The key is the name of the function, unique in the course; the three hints say where to look, the
idea, and nearly the code.
"""

import functools
import importlib
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.text_files import parse_yaml, read_text
from workbook.panel import Panel, note
from workbook.progress import course_root, load, record

_last = {"exercise": None}


class CourseFileError(ValueError):
    """A file of the course (hints, questions, published figures) is not as it should be."""


DottedName = Annotated[str, Field(pattern=r"^helpers(\.\w+)+$")]


class Exercise(BaseModel):
    """One exercise: its title, reference function, hints, and the line said on a pass.

    parts: functions of helpers that do the exercise's own work; to call one is to use the
    reference. further: it stands behind the core path.
    """

    model_config = ConfigDict(extra="forbid")
    title: str
    reference: DottedName
    parts: list[DottedName] = []
    further: bool = False
    learnt: str
    hints: Annotated[list[str], Field(min_length=3, max_length=3)]


class LessonHelp(BaseModel):
    """What `workbook/hints/NN.yaml` holds."""

    model_config = ConfigDict(extra="forbid")
    lesson: Annotated[str, Field(pattern=r"^\d\d$")]
    exercises: dict[str, Exercise]


def read_course_file(path, model):
    """Read a YAML file into a pydantic model; the error names file and field in one sentence."""
    try:
        text = read_text(path)
        value = parse_yaml(text)
    except (ValueError, OSError) as error:
        raise CourseFileError(f"{path.name}: this is not YAML: {error}") from error
    _no_lost_text(path.name, text, value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CourseFileError(f"{path.name}: {field}: {first['msg']}") from error


def _no_lost_text(name: str, text: str, value: object) -> None:
    """Refuse a comment behind a value: " #" inside an unquoted text cuts it off in silence."""
    kept = str(value)
    for number, line in enumerate(text.splitlines(), 1):
        _, found, tail = line.partition(" #")
        start = "#" + tail[:4].rstrip("\"'")
        if found and not line.lstrip().startswith("#") and start not in kept:
            raise CourseFileError(f'{name}, line {number}: put the text with " #" in quotes.')


def lessons_with_help() -> list[str]:
    """The lessons that have a hints file, in order."""
    return sorted(path.stem for path in (course_root() / "workbook" / "hints").glob("*.yaml"))


def lesson_help(lesson: str) -> LessonHelp:
    """The exercises of one lesson.

    Raises: CourseFileError for a file that is missing or malformed.
    """
    path = course_root() / "workbook" / "hints" / f"{lesson}.yaml"
    if not path.exists():
        raise CourseFileError(f"Lesson {lesson} has no file workbook/hints/{lesson}.yaml.")
    return _read_help(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _read_help(path, _changed: int) -> LessonHelp:
    return read_course_file(path, LessonHelp)


def find_exercise(name: str) -> tuple[str, Exercise]:
    """(lesson, exercise) of a name.

    Raises: CourseFileError for an unknown name, with the nearest known one.
    """
    known = {}
    for lesson in lessons_with_help():
        for exercise_name, exercise in lesson_help(lesson).exercises.items():
            known[exercise_name] = (lesson, exercise)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        tail = f'; did you mean "{near[0]}"?' if near else f". Exercises: {', '.join(known)}."
        raise CourseFileError(f'There is no exercise "{name}"{tail}')
    return known[name]


def exercise_number(name: str) -> str:
    """The place of an exercise in its lesson, as "exercise 2"."""
    lesson, _ = find_exercise(name)
    return f"exercise {list(lesson_help(lesson).exercises).index(name) + 1}"


def remember_exercise(name: str) -> None:
    """Make `hint(1)` mean the exercise that was checked last."""
    _last["exercise"] = name


def hint(n: int = 1, exercise: str | None = None) -> Panel:
    """Show hint 1, 2 or 3 of an exercise: of the one checked last, unless it is named.

    Example: `hint(1)` after a check, or `hint(2, "extract_answer")`.
    """
    name = exercise or _last["exercise"]
    if name is None:
        return note('Run a check first, or name the exercise: hint(1, "extract_answer").')
    lesson, entry = find_exercise(name)
    if n not in (1, 2, 3):
        return note(f"There are three hints for {name}: hint(1), hint(2) and hint(3).")
    remember_exercise(name)
    record(lesson, "hints", name, max(n, load(lesson)["hints"].get(name, 0)))
    after = f"hint({n + 1}) says more." if n < 3 else f'use_reference("{name}") lets you go on.'
    return note(f"Hint {n} of 3 for {name}", ("hint", entry.hints[n - 1]), ("then", after))


def reference_function(name: str):
    """The course's own function (or class) for an exercise.

    Raises: CourseFileError when the hints file names one that is not there.
    """
    return _course_function(name, find_exercise(name)[1].reference)


def reference_parts(name: str) -> list:
    """The functions of helpers that do the exercise's own work.

    Raises: CourseFileError when the hints file names one that is not there.
    """
    return [_course_function(name, part) for part in find_exercise(name)[1].parts]


def _course_function(exercise: str, dotted: str):
    module, _, attribute = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        lesson = find_exercise(exercise)[0]
        says = f"{lesson}.yaml: the reference of {exercise}, {dotted}, is not there."
        raise CourseFileError(says) from error


def use_reference(name: str):
    """Return the reference function of an exercise, so that the lesson goes on; it is recorded.

    Example: `extract_answer = use_reference("extract_answer")`
    """
    function = reference_function(name)
    record(find_exercise(name)[0], "references", name, True)
    print(f"From here on {name} is the course's own function; come back to yours at any time.")
    return function
