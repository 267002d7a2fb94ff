"""A submitted notebook: read it without running it, then run its exercises and judge them.

`read_submission` runs outside the confined process and executes nothing. `attempt` runs inside:
set-up cells and exercise cells only, known by their metadata (the tag `setup`, nbgrader's
grade_id), never a training, check or other cell. A function that stands elsewhere is not there
for the exercises; a remark names it and its cell.
"""

import ast
import functools
import json
import linecache
import os
import re
import signal
import stat
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType

from workbook import hints, signature
from workbook.mistakes import exercise_mistakes, mistakes_file
from workbook.pristine import LIBRARIES, Kept, Surroundings, beyond_reach, classes_of
from workbook.process import MEGABYTE
from workbook.progress import course_root
from workbook.properties import (
    codes,
    error_text,
    evaluate,
    is_or_forwards_to_reference,
    is_stub,
    short,
)
from workbook.sandbox import Refused
from workbook.setup import ROOT

MOST_MB = 20
SETUP_SECONDS = 20.0  # it may import what the grader has not imported yet
CELL_SECONDS = 5.0
COURSE = ("workbook", "helpers", "tests")
KEPT_VARIABLES = ("HOME", "TMPDIR", "WORKBOOK_ROOT", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Cell:
    """A code cell: its number in the notebook, its text, and what its metadata say."""

    number: int
    source: str
    is_setup: bool = False
    exercise: str = ""


@dataclass
class Submission:
    """A notebook as it was read: its lesson, its cells, and what is odd about it."""

    lesson: str
    cells: list[Cell]
    own_setup: str = ""  # the course's set-up cell, for a notebook that has lost its own
    remarks: list[str] = field(default_factory=list)

    @property
    def exercises(self) -> list[str]:
        """The names of the lesson's exercises, in order."""
        return list(hints.lesson_help(self.lesson).exercises)


def read_submission(path: Path, lesson: str | None = None) -> Submission:
    """Read a notebook; without `lesson`, its own cells or its file name say which it is.

    Raises: Refused, one sentence.
    """
    cells, remarks = _code_cells(_read_json(path))
    lesson = lesson or _find_lesson(path.name, cells)
    submission = Submission(lesson, cells, setup_of(lesson), remarks)
    held = Counter(cell.exercise for cell in cells if cell.exercise)
    known = submission.exercises
    remarks += [
        f"{count} cells are marked as {name}: all run, in their order"
        for name, count in held.items()
        if count > 1 and name in known
    ]
    strange = [name for name in held if name not in known]
    if strange:
        names = ", ".join(short(name, 60) for name in strange[:5])
        remarks.append(f"not run, no exercise of lesson {lesson}: {names}")
    return submission


def _read_json(path: Path) -> dict:
    data = _read_file(path)
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Refused(f"it cannot be read: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"it is not a notebook, for it is not JSON ({error})") from error
    form = notebook.get("nbformat") if isinstance(notebook, dict) else None
    if form is None or not isinstance(notebook.get("cells", []), list):
        raise Refused("it is JSON, but not a notebook")
    if form != 4 or "cells" not in notebook:
        said = short(str(form), 20)
        raise Refused(f"it is in notebook format {said}, not 4: save it again in JupyterLab")
    return notebook


def _read_file(path: Path) -> bytes:
    """The bytes of a file that is one: no link, no pipe, no folder, and not gone meanwhile."""
    if path.is_symlink():
        raise Refused("it is a symbolic link, which is not followed: hand in the file itself")
    try:
        # What stands here may change between a look and the opening: the open file is looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise Refused("it is not a file")
        with open(descriptor, "rb") as file:
            if found.st_size > MOST_MB * MEGABYTE:
                size = f"{found.st_size / MEGABYTE:.0f} MB, more than {MOST_MB}"
                raise Refused(f"it has {size}: clear its outputs")
            return file.read(MOST_MB * MEGABYTE)
    except OSError as error:
        raise Refused(f"it cannot be read: {error.strerror}") from error


def _code_cells(notebook: dict) -> tuple[list[Cell], list[str]]:
    """The code cells of a notebook, and a remark on those that cannot be read."""
    cells, broken = [], []
    for number, cell in enumerate(notebook["cells"], 1):
        try:
            if cell["cell_type"] == "code":
                cells.append(_code_cell(number, cell))
        except (KeyError, TypeError, AttributeError):
            broken.append(str(number))
    says = f"cells that are no cells of a notebook: {', '.join(broken[:5])}"
    return cells, [says] if broken else []


def _code_cell(number: int, cell: dict) -> Cell:
    source = cell["source"]
    text = source if isinstance(source, str) else "".join(source)
    metadata = _typed(cell.get("metadata"), dict)
    nbgrader = _typed(metadata.get("nbgrader"), dict)
    name = nbgrader.get("grade_id") if nbgrader.get("solution") else ""
    is_setup = "setup" in _typed(metadata.get("tags"), list)
    return Cell(number, text, is_setup, _typed(name, str))


def _typed(value, kind: type):
    """A value of the metadata, or an empty one where it is of another type than it should be."""
    return value if isinstance(value, kind) else kind()


def _find_lesson(file_name: str, cells: list[Cell]) -> str:
    """The lesson of the exercises; else that of `begin("01")`; else that of the file name."""
    known = hints.lessons_with_help()
    owners = {name: lesson for lesson in known for name in hints.lesson_help(lesson).exercises}
    lessons = Counter(owners[cell.exercise] for cell in cells if cell.exercise in owners)
    begun = {found for cell in cells if cell.is_setup for found in _begun(cell.source)}
    named = re.findall(r"(?<!\d)(\d\d)_[a-z]|^(\d\d)\D", file_name)
    for candidates in (lessons, begun, {a or b for a, b in named}):
        found = [lesson for lesson in candidates if lesson in known]
        if len(found) == 1:
            return found[0]
    raise Refused("its cells and its name do not say which lesson it is: give --lesson NN")


def _begun(source: str) -> list[str]:
    return re.findall(r"""^begin\(["'](\d\d)["']\)""", source, re.MULTILINE)


def setup_of(lesson: str) -> str:
    """The course's own set-up cell of a lesson; "" where the lesson is not built."""
    for path in (course_root() / "lessons").glob(f"{lesson}_*.ipynb"):
        cells, _ = _code_cells(_read_json(path.resolve()))
        return "\n".join(cell.source for cell in cells if cell.is_setup)
    return ""


def attempt(submission: Submission, seed: int, send: Callable[[dict], None]) -> Callable:
    """Run the cells; returns what checks every exercise, to be called in a fork of this process.

    Messages: the lesson, then remarks on the cells, then one for each exercise. The fork leaves
    behind the threads that a cell has started; what a cell has changed is put back in there.
    """
    bare_environment()
    send({"lesson": submission.lesson, "remarks": submission.remarks})
    notebook = ModuleType("__main__")  # where `ready`, dataclasses and pickle look for it
    notebook.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = notebook
    LIBRARIES.restore()  # some libraries wrap functions of others when they are imported
    put_back, course, around = beyond_reach(Kept.restore), _keep_course(), Surroundings()
    surroundings = beyond_reach(Surroundings.restore)
    remarks = _run_cells(submission, vars(notebook))

    def judge(send: Callable[[dict], None]) -> None:
        changed = [*put_back(LIBRARIES), *put_back(course)]
        others = surroundings(around)
        changed = [f"{_name_of(owner)}.{name}" for owner, name, _ in changed] + others
        for cached in _caches():  # what they hold may have been changed, too
            cached.cache_clear()
        remarks.extend(f"it changes {name}" for name in changed[:5])
        send({"remarks": [short(remark) for remark in remarks]})
        elsewhere = _defined_elsewhere(submission.cells)
        for name in submission.exercises:
            send(_judged(submission.lesson, name, vars(notebook).get(name), elsewhere, seed))

    return judge


def _keep_course() -> Kept:
    """The modules of the course and their classes, constants included."""
    modules = [module for name, module in sys.modules.items()
               if name.partition(".")[0] in COURSE or name.startswith("workbook_")]
    return Kept(whole=[*modules, *classes_of(*modules)])


def _caches() -> list:
    """The caches of what the course has read from its files."""
    modules = (hints, sys.modules["workbook.properties"], sys.modules["workbook.mistakes"])
    return [each for module in modules for each in vars(module).values()
            if hasattr(each, "cache_clear")]


def _name_of(owner) -> str:
    return getattr(owner, "__qualname__", None) or getattr(owner, "__name__", "an object")


def course_codes(lesson: str) -> list[frozenset[CodeType]]:
    """The code objects in the course's own solutions, mistakes and helpers, files read as text.

    Read before a room hides the solutions. A code object equals another that was compiled from
    the same lines of the same text, whatever it was imported as.
    """
    paths = [*(course_root() / "solutions").glob(f"{lesson}_*.py"), mistakes_file(lesson)]
    paths += [path for root in (ROOT, course_root()) for path in (root / "helpers").rglob("*.py")]
    return [_codes_in(path) for path in paths]


@functools.lru_cache(maxsize=512)
def _codes_in(path: Path) -> frozenset[CodeType]:
    found, waiting = set(), []
    with suppress(OSError, SyntaxError, ValueError):
        waiting.append(compile(path.read_text(encoding="utf-8"), str(path), "exec"))
    while waiting:
        inside = [each for each in waiting.pop().co_consts if isinstance(each, CodeType)]
        found.update(inside)
        waiting += inside
    return frozenset(found)


def _comes_from_course(lesson: str, function) -> bool:
    """Whether the code of a function stands in a file of the course."""
    folders = tuple(
        os.path.join(root, name, "")
        for root in (ROOT, course_root()) for name in ("helpers", "solutions", "tests", "workbook")
    )
    return any(
        code.co_filename.startswith(folders) or any(code in own for own in course_codes(lesson))
        for code in codes(function)
    )


def _run_cells(submission: Submission, names: dict) -> list[str]:
    """Run set-up, then the exercises, each with an alarm; what went wrong, in sentences."""
    remarks = []
    setup = [cell for cell in submission.cells if cell.is_setup]
    failed = [says for cell in setup if (says := _run_cell(cell, names))]
    if not setup:
        remarks.append("its set-up cell is gone: the course's own ran in its place")
    if failed or not setup:
        own = Cell(0, submission.own_setup)
        remarks += failed + [says for says in [_run_cell(own, names)] if says]
    for cell in submission.cells:
        if cell.exercise in submission.exercises:
            says = _run_cell(cell, names)
            remarks += [says] if says else []
    return remarks


def _run_cell(cell: Cell, names: dict) -> str:
    """Run one cell; the sentence that says what stopped it, or ""."""
    place = f"cell {cell.number}" if cell.number else "the course's own set-up cell"
    name = f"<{place}>"
    try:
        code = compile(cell.source, name, "exec")
    except SyntaxError as error:
        return f"{place}, line {error.lineno}: this is not Python ({error.msg})"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{place}: this is not Python ({error_text(error)})"
    linecache.cache[name] = (len(cell.source), None, cell.source.splitlines(True), name)
    seconds = CELL_SECONDS if cell.exercise else SETUP_SECONDS
    set_limit, limit = sys.setrecursionlimit, sys.getrecursionlimit()
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        exec(code, names)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are learner code, too
        return f"{place} stops with {error_text(error)}"
    finally:
        set_limit(limit)  # what follows needs its room
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def _ring(*_) -> None:
    raise TimeoutError("it takes too long")


def _defined_elsewhere(cells: list[Cell]) -> dict[str, int]:
    """The functions, classes and imports of cells that do not run, with the cell's number."""
    found = {}
    for cell in cells:
        if cell.is_setup or cell.exercise:
            continue
        try:
            body = ast.parse(cell.source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.setdefault(node.name, cell.number)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
                found |= {name: cell.number for name in names if name not in found}
    return found


def _judged(lesson: str, name: str, function, elsewhere: dict[str, int], seed: int) -> dict:
    """The message about one exercise; one that cannot be judged costs no other its points."""
    try:
        return _judge(lesson, name, function, elsewhere, seed)
    except Exception as error:
        says = f"{name} could not be judged: {error_text(error)}"
        return {"exercise": name, "outcome": "raised", "remarks": [short(says)]}


def _judge(lesson: str, name: str, function, elsewhere: dict[str, int], seed: int) -> dict:
    if not callable(function) or issubclass(type(function), ModuleType):
        remarks = [_not_run(name, elsewhere[name])] if name in elsewhere else []
        return {"exercise": name, "outcome": "not attempted", "remarks": remarks}
    more = _own_functions(lesson, name)
    result = evaluate(lesson, name, function, seed, more)
    outcome = result.outcome
    ran_through = result.properties and "ending" not in result.properties[-1]
    if outcome in ("failed", "raised") and result.held and ran_through:
        # A wrapper that spoils one case on purpose would earn the reference's points elsewhere.
        if is_or_forwards_to_reference(lesson, name, function, seed, more):
            outcome = "reference"
    if not is_stub(function) and _comes_from_course(lesson, function):
        outcome = "reference"
    errors = [found["error"] for found in result.properties if found.get("error")]
    undefined = re.findall(r"NameError: name '(\w+)' is not defined", " ".join(errors))
    lacking = set(undefined) & set(elsewhere)
    remarks = [_not_run(helper, elsewhere[helper]) for helper in sorted(lacking)]
    remarks = remarks or [short(f"{name}: {error}") for error in errors[:1]]
    return {
        "exercise": name,
        "outcome": outcome,
        "properties": {each["name"]: [each["outcome"], _says(each)] for each in result.properties},
        "mistake": result.mistake.name if result.mistake else "",
        "remarks": remarks,
    }


def _own_functions(lesson: str, name: str) -> list:
    """What else is the course's own: right variants among the mistakes, second imports."""
    known = exercise_mistakes(lesson, name)
    own = [*known.variants, *known.bases]
    references = [hints.reference_function(name), *hints.reference_parts(name)]
    return [*own, *signature.copies_of([*references, *own])]


def _not_run(name: str, number: int) -> str:
    return (
        f"{name} stands in cell {number}, which does not run, for it is neither set-up nor an "
        "exercise: move it into one, or tag that cell `setup`"
    )


def _says(result: dict) -> str:
    """One line on a property that does not hold."""
    if result["outcome"] == "passed":
        return ""
    parts = [result.get("error", ""), result.get("call", ""), result.get("hint", "")]
    if result.get("expected"):
        parts.insert(2, f"expected {result['expected']}, got {result.get('got', '')}")
    return short(" | ".join(part for part in parts if part))


def bare_environment() -> None:
    """Leave the confined process no variable of the grader but what the course needs."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, PATH="/usr/bin:/bin", USER="submission", HF_HUB_OFFLINE="1")
