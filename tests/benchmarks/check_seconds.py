"""How long a check takes, naming and all: python tests/benchmarks/check_seconds.py [LESSON ...]

For each exercise the slowest of its named mistakes, and its solution. A learner should wait less
than two seconds. Run it on an idle machine.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workbook.build import find_source, solution_functions  # noqa: E402
from workbook.hints import lesson_help  # noqa: E402
from workbook.mistakes import exercise_mistakes, lessons_with_mistakes  # noqa: E402
from workbook.properties import bind, evaluate  # noqa: E402


def seconds(lesson: str, exercise: str, function) -> float:
    """The time of one evaluation."""
    started = time.monotonic()
    evaluate(lesson, exercise, function, seed=0)
    return time.monotonic() - started


def main() -> None:
    for lesson in sys.argv[1:] or lessons_with_mistakes():
        bind(lesson)
        solutions = solution_functions(find_source(lesson))
        for exercise in lesson_help(lesson).exercises:
            wrong = [(seconds(lesson, exercise, mistake.function), mistake.name)
                     for mistake in exercise_mistakes(lesson, exercise).mistakes]
            slowest, name = max(wrong)
            right = seconds(lesson, exercise, solutions[exercise])
            print(f"{lesson} {exercise:24} right {right:.2f} s, wrong {slowest:.2f} s ({name})")


if __name__ == "__main__":
    main()
