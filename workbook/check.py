"""`check`: judge an exercise's function (workbook/properties.py) and show what was found.

Outcomes: passed, failed, raised, not attempted; a function that is the course's own, or only
forwards to it, is recorded as "reference".
"""

import inspect
import sys
from collections.abc import Callable

from workbook.hints import CourseFileError, find_exercise, remember_exercise
from workbook.panel import Panel, count
from workbook.pristine import as_kept
from workbook.progress import digest, record_check
from workbook.properties import Result, check_version, codes, evaluate


def check(function, name: str | None = None, *, seed: int | None = None) -> Panel:
    """Check an exercise: `check(fn)`, `check(fn, "name")` and `check("name")` are the same.

    Fixtures are random and fresh each time; a failure shows the seed that repeats it.
    """
    with as_kept():
        return _check(function, name, seed)


def _check(function, name: str | None, seed: int | None) -> Panel:
    try:
        function, name = _resolve(function, name)
        lesson, exercise = find_exercise(name)
    except (CourseFileError, NameError, TypeError) as error:
        return Panel("not attempted", str(error))
    remember_exercise(name)
    result = evaluate(lesson, name, function, seed)
    record_check(lesson, name, result.outcome, code_hash(function), check_version(lesson))
    return _panel(name, result, exercise.learnt)


def _resolve(function, name: str | None) -> tuple[Callable, str]:
    """The function to check and its exercise; a bare name is looked up in the notebook."""
    if isinstance(function, str):
        name, notebook = function, vars(sys.modules["__main__"])
        find_exercise(name)
        if name not in notebook:
            raise NameError(f"{name} is not defined yet: run the cell that holds it, then check.")
        function = notebook[name]
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(f"check wants a function, but this is a {kind}: write check(name_of_it).")
    return function, name or getattr(function, "__name__", "")


def code_hash(function) -> str:
    """A hash of the function's source, the evidence of what was checked; of a class its methods'.

    In a notebook a class has no file to be found in, but its methods have.
    """
    parts = [function]
    if issubclass(type(function), type):
        parts = [part for part in vars(function).values() if inspect.isfunction(part)]
    try:
        return digest("".join(map(inspect.getsource, parts)))
    except Exception:  # typed at a prompt, built by other code, or an object that answers nothing
        return digest(repr(codes(function)))


def _panel(name: str, result: Result, learnt: str) -> Panel:
    remark = [("note", result.remark)] if result.remark else []
    if result.outcome == "not attempted":
        return _not_attempted(name)
    if result.outcome == "reference":
        says = f"{name} is the course's own function, or calls it: recorded as the reference."
        return Panel("note", says, [("then", "write the body yourself and check again"), *remark])
    if result.outcome == "passed":
        headline = f"{name} has its {count(result.total, 'property')}."
        return Panel("passed", headline, [("learnt", learnt), *remark])
    return _what_is_wrong(name, result, remark)


def _not_attempted(name: str) -> Panel:
    rows = [
        ("write", "the body of the function, in place of the line that raises NotImplementedError"),
        ("go on", f'hint(1, "{name}")   or   {name} = use_reference("{name}")'),
    ]
    return Panel("not attempted", f"{name} is still the stub.", rows)


def _what_is_wrong(name: str, result: Result, remark: list) -> Panel:
    """The first property that does not hold, its smallest example, and the mistake if known."""
    bad = next(found for found in result.properties if found["outcome"] != "passed")
    if bad["outcome"] == "raised":
        headline = f"{name}: {bad['error']}"
    else:
        headline = f"{name} lacks a property: {bad['property']}"
    rows = [(key, bad.get(key, "")) for key in ("call", "expected", "got", "line")]
    if result.mistake:
        rows += [("mistake", f"your function {result.mistake.name}"),
                 ("hint", result.mistake.hint)]
    else:
        rows += [("hint", bad.get("hint", ""))]
    rows += [("printed", bad.get("printed", "")),
             ("holds", f"{result.held} of {count(result.total, 'property')}"),
             ("seed", str(result.seed))]
    return Panel(bad["outcome"], headline, [row for row in rows if row[1]] + remark)
