"""How long grading thirty submissions of a lesson takes: right, untouched, wrong and hostile ones.

python tests/benchmarks/grade_thirty.py 01
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from workbook.build import exercise_of, find_source, lesson_notebook, read_source, to_text
from workbook.setup import ROOT

TAKES_MISTAKE = """\
from workbook.mistakes import exercise_mistakes
known = exercise_mistakes("{lesson}", "{name}").mistakes
{name} = known[{number} % len(known)].function
"""
HOSTILE = [
    "while True: pass",
    "import os; os._exit(0)",
    "import os\nwhile True: os.fork()",
    "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
    "def {name}(*arguments):\n    while True: pass",
]


def submissions(lesson: str) -> dict[str, str]:
    """Thirty notebooks by file name: 11 right, 4 untouched, 10 with mistakes, 5 hostile."""
    source = read_source(find_source(lesson))
    right, untouched = to_text(source.notebook), to_text(lesson_notebook(source))
    names = [name for cell in source.notebook.cells if (name := exercise_of(cell))]
    made = {f"right_{k}": right for k in range(11)} | {
        f"untouched_{k}": untouched for k in range(4)
    }
    for k in range(10):
        texts = {n: TAKES_MISTAKE.format(lesson=lesson, name=n, number=k) for n in names}
        made[f"mistakes_{k}"] = with_cells(right, texts)
    for k, text in enumerate(HOSTILE):
        made[f"hostile_{k}"] = with_cells(right, {names[0]: text.format(name=names[0])})
    return made


def with_cells(notebook: str, texts: dict[str, str]) -> str:
    """The notebook with the source of some exercise cells replaced."""
    made = json.loads(notebook)
    for cell in made["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        cell["source"] = texts.get(name, cell["source"])
    return json.dumps(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lesson")
    lesson = parser.parse_args().lesson
    with tempfile.TemporaryDirectory() as folder:
        made = submissions(lesson)
        for name, text in made.items():
            (Path(folder) / f"{name}.ipynb").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "workbook", "grade", folder, "--csv", f"{folder}/t.csv"]
        start = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT)
        seconds = time.monotonic() - start
        kinds = Counter(name.partition("_")[0] for name in made)
    mix = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"lesson {lesson}: {len(made)} submissions ({mix}) in {seconds:.0f} s")


if __name__ == "__main__":
    main()
