"""`check`: run an exercise's properties on the learner's function and say what is wrong, or learnt.

The properties are the functions `test_<exercise>__<property>` of `tests/lessons/`. They run in a
forked child of the kernel (workbook/child.py) on fresh random fixtures; only messages come back.
Outcomes: passed, failed, raised, not attempted.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import linecache
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from tests.lessons import asserts
from workbook.child import BoundedText, ChildReport, InputAsked, run_forked, why_no_fork
from workbook.hints import (
    CourseFileError,
    find_exercise,
    reference_function,
    remember_exercise,
)
from workbook.panel import Panel, count
from workbook.progress import course_root, digest, record_check

TIME_LIMIT = 5.0  # seconds, for all properties of one exercise
MEMORY_LIMIT_MB = 2048


def check(function, name: str | None = None, *, seed: int | None = None) -> Panel:
    """Check an exercise: `check(fn)`, `check(fn, "name")` and `check("name")` are the same.

    Fixtures are random and fresh each time; a failure shows the seed that repeats it.
    """
    try:
        function, name = _resolve(function, name)
        lesson, exercise = find_exercise(name)
    except (CourseFileError, NameError, TypeError) as error:
        return Panel("not attempted", str(error))
    remember_exercise(name)
    if is_stub(function):
        outcome, panel = "not attempted", _not_attempted(name)
    else:
        seed = random.SystemRandom().randrange(10**6) if seed is None else seed
        results, how = run_properties(lesson, name, function, seed)
        outcome = next((r["outcome"] for r in results if r["outcome"] != "passed"), "passed")
        panel = _panel(name, results, exercise.learnt, seed, how, len(properties(lesson, name)))
        if outcome == "passed" and is_reference(function, name):
            outcome, panel.headline = "reference", "this is the course's own function, not yours."
    record_check(lesson, name, outcome, code_hash(function), check_version(lesson))
    return panel


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


def is_stub(function) -> bool:
    """Whether the function (or a method of the class) still raises NotImplementedError."""
    return any("NotImplementedError" in code.co_names for code in _codes(function))


def is_reference(function, name: str) -> bool:
    """Whether the function is the course's own."""
    return function is reference_function(name)


def code_hash(function) -> str:
    """A hash of the function's source, the evidence of what was checked."""
    try:
        return digest(inspect.getsource(function))
    except (OSError, TypeError):  # typed at a prompt, or built by other code
        return digest(repr(getattr(function, "__code__", function)))


def check_file(lesson: str) -> Path:
    """The file `tests/lessons/test_NN_*.py` of a lesson."""
    found = sorted((course_root() / "tests" / "lessons").glob(f"test_{lesson}_*.py"))
    if not found:
        raise CourseFileError(f"Lesson {lesson} has no file tests/lessons/test_{lesson}_*.py.")
    return found[0]


def check_version(lesson: str) -> str:
    """A hash of the lesson's checks; evidence made by another version asks for a new check."""
    return hashlib.sha256(check_file(lesson).read_bytes()).hexdigest()[:16]


def properties(lesson: str, exercise: str) -> list[Callable]:
    """The test functions of an exercise, in the order of the file."""
    path = check_file(lesson)
    module = _load_checks(path, path.stat().st_mtime_ns)
    prefix = f"test_{exercise}__"
    return [test for name, test in vars(module).items() if name.startswith(prefix)]


def property_names(lesson: str) -> list[str]:
    """The names of all test functions of a lesson, read without running the file."""
    tree = ast.parse(check_file(lesson).read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@functools.lru_cache(maxsize=32)
def _load_checks(path: Path, _changed: int):
    spec = importlib.util.spec_from_file_location(f"workbook_checks_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_properties(lesson: str, name: str, function, seed: int) -> tuple[list[dict], str]:
    """Run every property; one result each, and a remark where no child could be used."""
    tests = properties(lesson, name)
    if not tests:
        raise CourseFileError(f"{check_file(lesson).name} has no test_{name}__... function.")
    reason = why_no_fork()
    if reason:
        return _run_here(tests, function, seed), f"checked inside the kernel: {reason}"
    report = run_forked(
        lambda send: [send(run_property(test, function, seed)) for test in tests],
        seconds=TIME_LIMIT,
        memory_mb=MEMORY_LIMIT_MB,
    )
    results = _with_ending(report, tests)
    if any("fork-based multiprocessing" in result.get("error", "") for result in results):
        # Where a GPU is present, autograd starts threads on first use and refuses to work in forks.
        return _run_here(tests, function, seed), "checked inside the kernel: a GPU is present"
    return results, ""


def _with_ending(report: ChildReport, tests: list) -> list[dict]:
    """The results, with one more where the child did not reach its end."""
    if report.ending == "finished":
        return report.messages
    ending = {
        "timeout": f"it took longer than {TIME_LIMIT:g} s: is there a loop that never ends?",
        "memory": f"it asked for more than {MEMORY_LIMIT_MB} MB of memory.",
        "died": f"it ended the Python process ({report.detail}).",
    }
    test = tests[min(len(report.messages), len(tests) - 1)]
    result = {"property": _title(test), "outcome": "raised", "error": ending[report.ending]}
    return [*report.messages, result]


def run_property(test: Callable, function, seed: int) -> dict:
    """Run one test function and describe what happened as plain JSON values."""
    asserts.LAST.call = asserts.LAST.returned = ""
    random.seed(seed)
    torch.manual_seed(seed)
    watched = asserts.watch(function)
    try:
        test(**asserts.fixture_arguments(test, watched, seed))
        found = {"outcome": "passed"}
    except asserts.CheckFailed as failure:
        found = {"outcome": "failed"}
        found |= {key: getattr(failure, key) for key in ("call", "expected", "got", "hint")}
    except AssertionError as failure:
        found = {"outcome": "failed", "call": asserts.LAST.call, "hint": str(failure)}
    except MemoryError:
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt are learner code, too
        found = _describe_error(error, function)
    printed = getattr(sys.stdout, "text", "")
    return {"property": _title(test), "printed": printed[:200].strip()} | found


def _title(test: Callable) -> str:
    """The property in words: the docstring, else the name."""
    words = test.__name__.partition("__")[2].replace("_", " ")
    return (inspect.getdoc(test) or words).splitlines()[0]


def _describe_error(error: BaseException, function) -> dict:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == _file_of(function)]
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    found = {"outcome": "raised", "call": asserts.LAST.call, "error": _plain(error, frames, text)}
    if own:
        line = linecache.getline(own[-1].filename, own[-1].lineno).strip()
        found["line"] = f"line {own[-1].lineno} of the cell: {line}"
    elif asserts.LAST.returned:  # the check itself could not use what came back
        found |= {"outcome": "failed", "got": asserts.LAST.returned, "error": ""}
        found["hint"] = f"The check could not use what the function returned ({text})."
    return found


def _codes(function) -> list:
    """The code objects of a function, or of the methods of a class."""
    members = vars(function).values() if inspect.isclass(function) else [function]
    return [member.__code__ for member in members if hasattr(member, "__code__")]


def _file_of(function) -> str | None:
    codes = _codes(function)
    return codes[0].co_filename if codes else None


def _plain(error: BaseException, frames: traceback.StackSummary, text: str) -> str:
    """One sentence for the errors that have a usual cause."""
    if isinstance(error, NotImplementedError):
        return f"it calls {frames[-1].name}, which is not written yet."
    if isinstance(error, InputAsked):
        return "it asks for input; a checked function takes everything from its arguments."
    if isinstance(error, SystemExit):
        return "it calls exit()."
    if isinstance(error, RecursionError):
        return "it calls itself without end (RecursionError)."
    if "alloc" in text and "memory" in text:
        return f"it asked for more than {MEMORY_LIMIT_MB} MB of memory."
    return text if len(text) <= 300 else text[:299] + "…"


def _run_here(tests: list, function, seed: int) -> list[dict]:
    """The fallback without a child: same tests in this process, with a timer where there is one."""
    state, threads, grad = torch.random.get_rng_state(), random.getstate(), torch.is_grad_enabled()
    results = []
    try:
        with _timer(TIME_LIMIT), redirect_stdout(BoundedText()), redirect_stderr(BoundedText()):
            for test in tests:
                results.append(run_property(test, function, seed))
                if results[-1].get("error", "").startswith("TimeoutError"):
                    break
    finally:
        torch.random.set_rng_state(state)
        random.setstate(threads)
        torch.set_grad_enabled(grad)
    return results


@contextmanager
def _timer(seconds: float):
    """Raise TimeoutError after `seconds`, in the main thread of a system with SIGALRM."""
    main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "SIGALRM") or not main:
        yield
        return

    def ring(*_):
        raise TimeoutError(f"longer than {seconds:g} s: is there a loop that never ends?")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _not_attempted(name: str) -> Panel:
    rows = [
        ("write", "the body of the function, in place of the line that raises NotImplementedError"),
        ("go on", f'hint(1, "{name}")   or   {name} = use_reference("{name}")'),
    ]
    return Panel("not attempted", f"{name} is still the stub.", rows)


def _panel(
    name: str, results: list[dict], learnt: str, seed: int, how: str, total: int
) -> Panel:
    """The panel of the first property that does not hold, or of a pass."""
    remark = [("note", how)] if how else []
    bad = next((result for result in results if result["outcome"] != "passed"), None)
    if bad is None:
        headline = f"{name} has its {count(len(results), 'property')}."
        return Panel("passed", headline, [("learnt", learnt), *remark])
    held = sum(result["outcome"] == "passed" for result in results)
    if bad["outcome"] == "raised":
        headline = f"{name}: {bad['error']}"
    else:
        headline = f"{name} lacks a property: {bad['property']}"
    shown = ("call", "expected", "got", "line", "hint", "printed")
    rows = [(key, bad.get(key, "")) for key in shown]
    rows += [("holds", f"{held} of {count(total, 'property')}"), ("seed", str(seed))]
    return Panel(bad["outcome"], headline, [(key, text) for key, text in rows if text] + remark)
