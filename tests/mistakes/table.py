"""The table of CONTRIBUTING: properties, mistakes and variants of each exercise, and the naming.

    python tests/mistakes/table.py              # measures all rows and prints them
    python tests/mistakes/table.py --write 02   # lesson 02 again, into CONTRIBUTING.md

Each named mistake and each pair of combined mistakes is judged on fixtures of SEEDS. The naming
rate counts how often the name was right, how often none was given, and how often it was wrong.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.mistakes.naming import EXERCISES, name_of  # noqa: E402
from workbook.mistakes import exercise_mistakes  # noqa: E402
from workbook.progress import write_text  # noqa: E402
from workbook.properties import properties  # noqa: E402

PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- naming: table.py -->", "<!-- naming: end -->"
SEEDS = range(10)
HEAD = """\
| lesson | exercise | properties | mistakes | variants | right / none / wrong | the same of pairs |
|---|---|---|---|---|---|---|
"""


def counts(lesson: str, exercise: str) -> str:
    """The part of a row that needs no run: lesson, exercise, properties, mistakes, variants."""
    known = exercise_mistakes(lesson, exercise)
    sizes = len(properties(lesson, exercise)), len(known.mistakes), len(known.variants)
    return f"| {lesson} | `{exercise}` | {' | '.join(map(str, sizes))} |"


def naming(lesson: str, exercise: str, seeds) -> str:
    """The two rates of a row, of single mistakes and of pairs."""
    known = exercise_mistakes(lesson, exercise)
    single = [(frozenset([each.name]), each.function) for each in known.mistakes]
    cells = [_rate(lesson, exercise, functions, seeds) for functions in (single, known.combined)]
    return f" {' | '.join(cells)} |"


def _rate(lesson: str, exercise: str, functions: list, seeds) -> str:
    right = none = wrong = 0
    for names, function in functions:
        for seed in seeds:
            name = name_of(lesson, exercise, function, seed)
            right, none = right + (name in names), none + (name is None)
            wrong += name is not None and name not in names
    return f"{right} / {none} / {wrong}" if functions else "-"


def table(lessons: list[str]) -> str:
    """The whole table; rows of other lessons than these stay as they are stored."""
    kept = {row.split("`")[1]: row for row in stored().splitlines() if "`" in row}
    rows = [counts(*each) + naming(*each, SEEDS) if each[0] in lessons else kept.get(each[1])
            for each in EXERCISES]
    return HEAD + "".join(f"{row}\n" for row in rows if row)


def stored() -> str:
    """The table that CONTRIBUTING.md holds."""
    return _between().search(PAGE.read_text(encoding="utf-8"))[1]


def _between() -> re.Pattern:
    return re.compile(f"{re.escape(START)}\n(.*?){re.escape(END)}", re.DOTALL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into CONTRIBUTING.md")
    parser.add_argument("lessons", nargs="*", default=sorted({each[0] for each in EXERCISES}))
    arguments = parser.parse_args()
    made = table(arguments.lessons)
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        write_text(PAGE, _between().sub(lambda _: f"{START}\n{made}{END}", page))
    print(made)
