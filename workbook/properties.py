"""Run an exercise's properties on a function: the judgement behind `check` and `workbook grade`.

    result = evaluate("01", "extract_answer", function, seed=3)
    result.outcome       "passed", "failed", "raised", "not attempted" or "reference"
    result.score         share of the properties that hold; 0 for a stub and for the reference
    result.properties    one dict for each property that ran: "name" (of the test function),
                         "property" (in words), "outcome", and of "call", "expected", "got",
                         "hint", "error", "line", "printed" those that apply
    result.total         how many properties the exercise has; those behind a crash did not run
    result.mistake       the named mistake (.name, .hint) that the function makes, or None
    result.seed          repeats the fixtures;   result.remark   where no child could be used

The properties are the functions `test_<exercise>__<property>` of `tests/lessons/`. They run in a
forked child (workbook/child.py) on random fixtures; a second child names the mistake, or finds
out whether a function that passed only forwards to the course's own. `evaluate` never raises
because of the function.
"""

import ast
import dis
import functools
import hashlib
import importlib.util
import inspect
import linecache
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, MethodType

import torch

from tests.lessons import asserts
from workbook import signature
from workbook.child import (
    ChildReport,
    InputAsked,
    OutOfTime,
    run_forked,
    run_here,
    why_no_fork,
)
from workbook.hints import CourseFileError, lesson_help, reference_function, reference_parts
from workbook.mistakes import Mistake, exercise_mistakes
from workbook.pristine import LIBRARIES, Kept, as_kept, beyond_reach, classes_of
from workbook.progress import course_root

TIME_LIMIT = 5.0  # seconds, for all properties of one exercise
NAMING_LIMIT = 2.0  # seconds, for naming a mistake
MEMORY_LIMIT_MB = 2048
COURSE = ("workbook.", "workbook_checks_", "helpers", "tests.lessons")
JUDGES = ("workbook_checks_", "tests.lessons.asserts", "workbook.values", "workbook.signature",
          "workbook.properties", "workbook.child", "workbook.pristine")


@dataclass
class Result:
    """What an evaluation found; see the module for each field."""

    outcome: str
    seed: int
    total: int
    properties: list[dict] = field(default_factory=list)
    mistake: Mistake | None = None
    remark: str = ""

    @property
    def held(self) -> int:
        """How many properties hold."""
        return sum(found["outcome"] == "passed" for found in self.properties)

    @property
    def score(self) -> float:
        """The share of properties that hold; the course's own function earns nothing."""
        return 0.0 if self.outcome == "reference" else self.held / self.total


def evaluate(
    lesson: str, name: str, function, seed: int | None = None, more: Sequence = ()
) -> Result:
    """Judge a function (or class) by the properties of an exercise, on fixtures of the seed.

    more: functions that count as the course's own, beside the exercise's reference.

    Raises: CourseFileError where the lesson has no checks for the exercise.
    """
    with as_kept(bind(lesson)):
        seed = random.SystemRandom().randrange(10**6) if seed is None else seed
        tests = properties(lesson, name)
        if is_stub(function):
            return Result("not attempted", seed, len(tests))
        found, remark = _run_all(tests, function, seed)
        outcome = next((each["outcome"] for each in found if each["outcome"] != "passed"), "passed")
        result = Result(outcome, seed, len(tests), found, remark=remark)
        if outcome == "passed" and is_or_forwards_to_reference(lesson, name, function, seed, more):
            result.outcome = "reference"
        elif outcome in ("failed", "raised") and "ending" not in found[-1]:
            result.mistake = _named(lesson, name, function, seed)
        return result


# ---------------------------------------------------------------- finding the properties


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
    """The test functions of an exercise, in the order of the file.

    Raises: CourseFileError where there is none.
    """
    path = check_file(lesson)
    module = _load_checks(path, path.stat().st_mtime_ns)
    prefix = f"test_{exercise}__"
    tests = [test for name, test in vars(module).items() if name.startswith(prefix)]
    if not tests:
        raise CourseFileError(f"{path.name} has no test_{exercise}__... function.")
    return tests


def property_names(lesson: str) -> list[str]:
    """The names of all test functions of a lesson, read without running the file."""
    tree = ast.parse(check_file(lesson).read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@functools.lru_cache(maxsize=32)
def bind(lesson: str) -> Kept:
    """Load what the checks of a lesson use, and keep it as it is now; `begin` does so first."""
    for name in lesson_help(lesson).exercises:
        reference_function(name)  # imported here once, not by every child
    path = check_file(lesson)
    own = [module for name, module in sys.modules.items() if name.startswith("helpers.")]
    return Kept(*own, asserts, asserts.CheckFailed, _load_checks(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=32)
def _load_checks(path: Path, _changed: int):
    spec = importlib.util.spec_from_file_location(f"workbook_checks_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- running them


def _run_all(tests: list, function, seed: int) -> tuple[list[dict], str]:
    """One result for each property that ran, and a remark where no child could be used."""

    restore = _guard()

    def work(send):
        restore()  # what learner code does at a fork comes before this line
        for test in tests:
            send(run_property(test, function, seed, restore))

    report, remark = _isolated(work, TIME_LIMIT)
    return _with_ending(report, tests), remark


def _guard() -> Callable:
    """A function that puts libraries and the course's own modules back after learner code.

    To be made before learner code runs: it restores what was there when it was made.
    """
    own = [module for name, module in sys.modules.items() if name.startswith(COURSE)]
    judges = [module for name, module in sys.modules.items() if name.startswith(JUDGES)]
    helpers = [module for module in own if module.__name__.startswith("helpers")]
    course = Kept(*own, *classes_of(*helpers), whole=[*judges, *classes_of(*judges)])
    put_back = beyond_reach(Kept.restore)

    def restore():
        put_back(LIBRARIES)
        put_back(course)

    return restore


def _isolated(work: Callable, seconds: float) -> tuple[ChildReport, str]:
    """Run `work(send)` in a child; in this process where there can be none, and say why."""
    reason = why_no_fork()
    if reason:
        return run_here(work, seconds=seconds), f"checked inside the kernel: {reason}"
    report = run_forked(work, seconds=seconds, memory_mb=MEMORY_LIMIT_MB)
    if any("fork-based multiprocessing" in each.get("error", "") for each in report.messages):
        # Where a GPU is present, autograd starts threads on first use and refuses to work in forks.
        return run_here(work, seconds=seconds), "checked inside the kernel: a GPU is present"
    return report, ""


def _with_ending(report: ChildReport, tests: list) -> list[dict]:
    """The results, with one more where the child did not reach its end, or lost one."""
    names = [test.__name__ for test in tests]
    said = [message.get("name") for message in report.messages]
    if report.ending == "finished" and said == names:
        return report.messages
    if said != names[: len(said)] or report.ending == "finished":
        report = ChildReport([], "files")
    ending = {
        "timeout": f"it took longer than {TIME_LIMIT:g} s: is there a loop that never ends?",
        "memory": f"it asked for more than {MEMORY_LIMIT_MB} MB of memory.",
        "files": "it closes or writes to files that it did not open.",
        "died": f"it ended the Python process ({report.detail}).",
    }
    test = tests[min(len(report.messages), len(tests) - 1)]
    result = _titled(test) | {"outcome": "raised", "error": ending[report.ending]}
    return [*report.messages, result | {"ending": report.ending}]


def run_property(test: Callable, function, seed: int, restore: Callable) -> dict:
    """Run one test function and describe what happened as plain JSON values."""
    asserts.LAST.call = asserts.LAST.returned = ""
    random.seed(seed)
    # torch.manual_seed keeps a stack trace for each call until a GPU is used: slow and growing.
    torch.default_generator.manual_seed(seed)
    watched = asserts.watch(function, after=restore)
    try:
        test(**asserts.fixture_arguments(test, watched, seed))
        found = {"outcome": "passed"}
    except asserts.CheckFailed as failure:
        found = {"outcome": "failed"}
        found |= {key: getattr(failure, key) for key in ("call", "expected", "got", "hint")}
    except (MemoryError, OutOfTime):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt are learner code, too
        restore()
        found = _describe_error(error, function)
    restore()
    printed = getattr(sys.stdout, "text", "")
    return _titled(test) | {"printed": printed[:200].strip()} | found


def _titled(test: Callable) -> dict:
    """The name of a property, and in words: the docstring, else the name."""
    words = test.__name__.partition("__")[2].replace("_", " ")
    return {"name": test.__name__, "property": (inspect.getdoc(test) or words).splitlines()[0]}


def _describe_error(error: BaseException, function) -> dict:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == _file_of(function)]
    text = error_text(error)
    if own:
        line = linecache.getline(own[-1].filename, own[-1].lineno).strip()
        line = f"line {own[-1].lineno} of the cell: {line}"
        says = _plain(error, frames, text)
        return {"outcome": "raised", "call": asserts.LAST.call, "error": says, "line": line}
    if isinstance(error, AssertionError):  # a bare assert of the property
        return {"outcome": "failed", "call": asserts.LAST.call, "hint": text}
    if asserts.LAST.returned:  # the check itself could not use what came back
        hint = f"The check could not use what the function returned ({text})."
        got = asserts.LAST.returned
        return {"outcome": "failed", "call": asserts.LAST.call, "got": got, "hint": hint}
    says = _plain(error, frames, text)
    return {"outcome": "raised", "call": asserts.LAST.call, "error": says}


def error_text(error: BaseException) -> str:
    """Kind and text of an error in at most 300 characters, whatever its class makes of them."""
    kind = short(_CLASS_NAME(type(error)), 100)
    try:
        said = str.__getitem__(str(error), slice(1_000))  # plain, even of a subclass of str
    except BaseException:  # an exception class whose own text raises
        return kind
    return short(f"{kind}: {said}".rstrip(": "))


_CLASS_NAME = type.__dict__["__name__"].__get__


def short(text: str, longest: int = 300) -> str:
    """The start of a text, with a sign that there is more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def is_stub(function) -> bool:
    """Whether the function (or a method of the class) does nothing but raise NotImplementedError.

    One that raises it in a branch is no stub: some way through it ends in a result.
    """
    return any("NotImplementedError" in code.co_names and not _can_end(code)
               for code in codes(function))


def _can_end(code: CodeType) -> bool:
    """Whether a way leads to a result; the compiler has left out what nothing can reach."""
    ends = ("RETURN_VALUE", "RETURN_CONST", "YIELD_VALUE")
    return any(step.opname in ends for step in dis.get_instructions(code))


def codes(function) -> list[CodeType]:
    """The code objects of a function, of what it wraps, or of the methods of a class.

    Nothing of the object's own runs: neither its attributes nor its class can lie or raise.
    """
    is_class = issubclass(type(function), type)
    members = list(_NAMESPACE(function).values()) if is_class else [function]
    found, seen = [], set()
    while members:
        member = members.pop(0)
        seen.add(id(member))
        wrapped = _wrapped_by(member)
        if wrapped is not None and id(wrapped) not in seen:  # functions may wrap each other
            members.append(wrapped)
        elif type(member) is FunctionType:
            found.append(member.__code__)
    return found


_NAMESPACE = type.__dict__["__dict__"].__get__


def _wrapped_by(member):
    """The function in a partial, a method, a static method or a wrapper, else None."""
    kinds = ((functools.partial, "func"), (MethodType, "__func__"),
             (staticmethod, "__func__"), (classmethod, "__func__"))
    for kind, name in kinds:
        if type(member) is kind:
            return getattr(member, name)
    try:
        return inspect.getattr_static(member, "__wrapped__", None)
    except Exception:  # a class may have any __dict__
        return None


def _file_of(function) -> str | None:
    found = codes(function)
    return found[0].co_filename if found else None


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
    if not isinstance(error, Exception):
        return f"it raises {_CLASS_NAME(type(error))}, which is not for functions to raise."
    if "alloc" in text and "memory" in text:
        return f"it asked for more than {MEMORY_LIMIT_MB} MB of memory."
    return text


# ---------------------------------------------------------------- naming, forwarding


def _fixtures(lesson: str, name: str, seed: int) -> signature.Fixtures:
    tests, probes = properties(lesson, name), exercise_mistakes(lesson, name).probes
    return signature.record(tests, probes, reference_function(name), seed)


def _named(lesson: str, name: str, function, seed: int) -> Mistake | None:
    """The mistake that fits everywhere; None where none or several do, or time is short."""
    mistakes = exercise_mistakes(lesson, name).mistakes

    restore = _guard()

    def work(send):
        restore()
        fixtures, reference = _fixtures(lesson, name, seed), reference_function(name)
        found = signature.name_mistake(function, reference, mistakes, fixtures, restore)
        send({"mistake": mistakes.index(found) if found else None})

    report, _ = _isolated(work, NAMING_LIMIT) if mistakes else (ChildReport(), "")
    index = report.messages[0].get("mistake") if report.messages else None
    return None if index is None else mistakes[index]


def is_or_forwards_to_reference(
    lesson: str, name: str, function, seed: int, more: Sequence = ()
) -> bool:
    """Whether a function is the course's own (or one of `more`), or does something else without.

    The same code counts, not the same object: a module may have been imported once more.
    """
    references = [reference_function(name), *reference_parts(name), *more]
    own = {code for reference in references for code in codes(reference)}
    if own & set(codes(function)):
        return True
    restore = _guard()

    def work(send):
        restore()
        fixtures = _fixtures(lesson, name, seed)
        send({"forwards": signature.depends_on(function, references, fixtures, restore)})

    report, _ = _isolated(work, TIME_LIMIT)
    return bool(report.messages and report.messages[0].get("forwards"))
