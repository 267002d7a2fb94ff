"""Judge functions as `evaluate` does, in this process: hundreds of forks would take minutes."""

import functools

from tests.lessons import asserts
from workbook.hints import lesson_help, reference_function
from workbook.mistakes import exercise_mistakes, lessons_with_mistakes
from workbook.properties import properties, run_property
from workbook.signature import Fixtures, name_mistake, record

EXERCISES = [(lesson, exercise) for lesson in lessons_with_mistakes()
             for exercise in lesson_help(lesson).exercises]
IDS = [exercise for _, exercise in EXERCISES]
SEEDS = (0, 1, 2)


def judge(lesson: str, exercise: str, function, seed: int) -> tuple[bool, str | None]:
    """Whether all properties hold, and the name that the function gets where they do not."""
    tests = properties(lesson, exercise)
    found = (run_property(test, function, seed, asserts.nothing) for test in tests)
    if all(each["outcome"] == "passed" for each in found):
        return True, None
    return False, name_of(lesson, exercise, function, seed)


def name_of(lesson: str, exercise: str, function, seed: int) -> str | None:
    """The name that a failing function gets."""
    known, fixtures = exercise_mistakes(lesson, exercise), _fixtures(lesson, exercise, seed)
    found = name_mistake(function, reference_function(exercise), known.mistakes, fixtures)
    return found.name if found else None


@functools.lru_cache(maxsize=256)
def _fixtures(lesson: str, exercise: str, seed: int) -> Fixtures:
    probes = exercise_mistakes(lesson, exercise).probes
    return record(properties(lesson, exercise), probes, reference_function(exercise), seed)
