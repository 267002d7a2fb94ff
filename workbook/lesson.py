'''Everything a lesson notebook imports from the course, and how a lesson's source is written.

A lesson is one file, `solutions/NN_name.py`, in jupytext's percent format. `workbook build` writes
`lessons/NN_name.ipynb` from it (blanks, no outputs); `workbook build --execute` runs it and writes
`solutions/NN_name.ipynb`.

First cell (tag `setup`; imports, `begin` and `use_profile` only, for tests run it, too):

    # %% tags=["setup"]
    from workbook.lesson import (
        answer, begin, check, comparison_table, failure_browser, hint, observed, predict, progress,
        published, ready, run_folder, save_findings, use_profile, use_reference,
    )

    begin("01")
    profile = use_profile("tiny")

An exercise cell defines one function (or class) whose name is its grade_id; the metadata also
hold `"schema_version": 3, "solution": true, "task": false`, all on the header line:

    # %% nbgrader={"grade": false, "grade_id": "last_number", "locked": false, ...}
    def last_number(text: str) -> str | None:
        """The last number of a text."""
        ### BEGIN SOLUTION
        found = re.findall(r"-?\\d+", text)
        return found[-1] if found else None
        ### END SOLUTION

The check cell, the next one, is one line: `check(last_number)`. A cell that needs an exercise:

    # %%
    if ready("last_number"):
        display(rates_with_intervals(...))

`ready` is False, and says in one line what to do, while an exercise is a stub; so Run All on an
untouched lesson shows no traceback. A figure inside the `if` wants `display(figure)`.

    predict("strict accuracy", "falls")       # before a run; the lesson comes with "?"
    observed("strict accuracy", direction)    # after it
    answer("01-1", "b")                       # the lesson comes with "?", which shows the question
    # hint(1, "last_number")                  # a comment for the learner to take out

Each `predict(` and `answer(` stands at the start of a line, its two texts in double quotes: the
build replaces the second by "?". Cells tagged `solution-only` are left out of the lesson.
The last cells save and compare:

    findings = {"strict_accuracy": 0.03, ...}
    save_findings("01", findings, seeds=[0])
    comparison_table("01", findings, ["s0.format_rate", "s0.accuracy"])

Each exercise has an entry in workbook/hints/NN.yaml (form: workbook/hints.py) and functions
`test_<exercise>__<property>(fn)` in tests/lessons/test_NN_name.py (form: tests/lessons/asserts.py);
each question an entry in workbook/questions/NN.yaml (form: workbook/answers.py).
'''

import json
import sys
import time
from pathlib import Path

from IPython.display import display

from workbook.answers import answer, observed, predict
from workbook.check import check
from workbook.dashboard import progress
from workbook.hints import exercise_number, find_exercise, hint, use_reference
from workbook.monitor import live_monitor
from workbook.panel import note
from workbook.profiles import active_profile, use_profile
from workbook.progress import (
    current_lesson,
    load,
    run_root,
    set_lesson,
    write_json,
)
from workbook.properties import bind, is_stub
from workbook.published import comparison_table, published, published_group
from workbook.recorded import recorded_or_live
from workbook.tokens import token_view
from workbook.widgets import failure_browser

__all__ = [
    "answer",
    "begin",
    "check",
    "comparison_table",
    "failure_browser",
    "hint",
    "live_monitor",
    "observed",
    "predict",
    "progress",
    "published",
    "published_group",
    "ready",
    "recorded_or_live",
    "run_folder",
    "save_findings",
    "token_view",
    "use_profile",
    "use_reference",
]

_started = {"at": time.monotonic()}


def begin(lesson: str) -> None:
    """Name the lesson of this notebook, bind its checks, and start its clock."""
    set_lesson(lesson)
    bind(lesson)
    _started["at"] = time.monotonic()


def ready(*names: str) -> bool:
    """Whether these exercises are written; if not, say in one line which, and how to go on.

    Example: `if ready("extract_answer"): ...`
    """
    notebook = vars(sys.modules["__main__"])
    missing = [name for name in names if name not in notebook or is_stub(notebook[name])]
    if missing:
        needed = " and ".join(f"{name} ({exercise_number(name)})" for name in missing)
        them, first = "them" if missing[1:] else "it", missing[0]
        way = f'write {them} above, or go on with {first} = use_reference("{first}")'
        display(note(f"This cell needs {needed}: {way}"))
    else:
        _warn_of_failing(names)
    return not missing


def _warn_of_failing(names: tuple[str, ...]) -> None:
    for name in names:
        evidence = load(find_exercise(name)[0])["exercises"].get(name)
        if evidence and evidence["outcome"] in ("failed", "raised"):
            says = f"The last check of {name} did not pass: what follows uses it as it is."
            display(note(says))


def run_folder(name: str | None = None) -> Path:
    """`runs/<lesson>/<profile>-<depth>/` (or `runs/<lesson>/<name>/`), made if it is not there."""
    profile = active_profile()
    folder = run_root() / current_lesson() / (name or f"{profile.name}-{profile.depth}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_findings(lesson: str, findings: dict, *, seeds=(0,)) -> Path:
    """Write the lesson's numbers to `findings.json`, with profile, depth, seeds and seconds.

    Raises: ValueError for a value that is not a finite number, a string, a list or None.
    """
    profile = active_profile()
    seconds = round(time.monotonic() - _started["at"], 1)
    facts = {"profile": profile.name, "depth": profile.depth, "seeds": list(seeds)}
    try:
        json.dumps(findings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"findings of lesson {lesson}: {error}; give plain numbers") from error
    path = run_folder() / "findings.json"
    write_json(path, facts | findings | {"seconds": seconds})
    return path
