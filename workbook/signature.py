"""Name a mistake by its signature: outputs and gradients on all fixtures of an exercise.

The arguments that the properties hand to a right function are recorded. The learner's function
and every named mistake are called on them, and on the probes of the mistakes file. A name is
given only where exactly one mistake agrees with the learner's function everywhere: in values, in
gradients, in what it raises. A wrong name is worse than none.
"""

import functools
import gc
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace

import torch

from tests.lessons import asserts
from workbook.mistakes import Mistake
from workbook.pristine import restore_settings, settings
from workbook.values import copied, same


@dataclass(frozen=True)
class Fixtures:
    """What the functions under comparison are called on."""

    calls: list[tuple[tuple, dict]]
    probes: list[Callable]
    seed: int


def record(tests: list, probes: list, reference, seed: int) -> Fixtures:
    """The arguments of all calls that tests and probes make on a right function.

    Of a class no calls are recorded: its probes build and use it, and say what came out.
    """
    if inspect.isclass(reference):
        return Fixtures([], probes, seed)
    calls = []

    def recording(*args, **kwargs):
        calls.append((copied(args), copied(kwargs)))
        return reference(*args, **kwargs)

    for test in tests:
        _seed(seed)
        with suppress(asserts.CheckFailed):  # what it has called until then is recorded
            test(**asserts.fixture_arguments(test, recording, seed))
    for probe in probes:
        _seed(seed)
        probe(recording, random.Random(seed))
    return Fixtures(calls, [], seed)


def uses(fixtures: Fixtures) -> Iterator[Callable]:
    """For each fixture a `use(function, after)`, which says what the function does on it.

    That is ("value", result, gradients) or ("raises", type).
    after: called behind the call, to put back what learner code has patched.
    """
    for args, kwargs in fixtures.calls:
        yield functools.partial(_call, args, kwargs, fixtures.seed)
    for probe in fixtures.probes:
        yield functools.partial(_probe, probe, fixtures.seed)


def _call(args: tuple, kwargs: dict, seed: int, function, after=asserts.nothing) -> tuple:
    args, kwargs = copied(args), copied(kwargs)
    return _outcome(lambda: function(*args, **kwargs), (args, kwargs), seed, after)


def _probe(probe: Callable, seed: int, function, after=asserts.nothing) -> tuple:
    return _outcome(lambda: probe(function, random.Random(seed)), (), seed, after)


def _builtin_kind(error: Exception) -> str:
    """An error of the course's own is as good as the ValueError that it is."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


def _outcome(call: Callable, given: tuple, seed: int, after: Callable) -> tuple:
    _seed(seed)
    before = settings()
    try:
        result = call()
        found = ("value", copied(result), _gradients(result, list(_tensors(given))))
    except Exception as error:
        found = ("raises", _builtin_kind(error), None)
    after()
    restore_settings(before)
    return found


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _gradients(result, given: list[torch.Tensor]) -> list | None:
    """Gradients of a weighted sum of all outputs, by those inputs that ask for one."""
    outputs = [tensor for tensor in _tensors(result) if tensor.requires_grad]
    wanted = [tensor for tensor in given if tensor.requires_grad]
    if not outputs or not wanted:
        return None
    # Unequal weights: a plain sum would not see two rows exchanged.
    weights = [torch.arange(1, out.numel() + 1).cos().to(out).view_as(out) for out in outputs]
    total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


def name_mistake(
    function, reference, mistakes: list[Mistake], fixtures: Fixtures, after=asserts.nothing
) -> Mistake | None:
    """The one named mistake that does what the function does on every fixture, else None."""
    candidates, differs = list(mistakes), False
    for use in uses(fixtures):
        seen = use(function, after)
        candidates = [each for each in candidates if same(use(each.function), seen)]
        if not candidates:
            return None
        differs = differs or not same(use(reference), seen)
    return candidates[0] if differs and len(candidates) == 1 else None


def depends_on(function, references: list, fixtures: Fixtures, after=asserts.nothing) -> bool:
    """Whether the function calls a reference, and does something else once they are out of work.

    Two runs of a right function may differ by themselves (a timing, a random state of its own), so
    a difference alone proves nothing; where they do, only a run that raises instead counts.
    """
    with out_of_work(references) as stop:
        def after_each():
            after()
            stop()

        without = []
        for use in uses(fixtures):  # first, before the function can have stored a right result
            REFUSED.calls = 0
            without.append((use(function, after_each), REFUSED.calls > 0))
    for use, (seen, has_called) in zip(uses(fixtures), without, strict=True):
        if has_called and not same(found := use(function, after), seen):
            steady = same(use(function, after), found)
            if steady or found[0] != seen[0]:
                return True
    return False


REFUSED = SimpleNamespace(calls=0)  # of functions that are out of work


@contextmanager
def out_of_work(references: list):
    """Functions (and the methods of classes) that raise when they are called, by any alias.

    Yields what puts them out of work again, where something has restored them meanwhile.
    """
    functions = [f for reference in references for f in _functions(reference)]
    codes = [function.__code__ for function in functions]
    idle = [_refuses.__code__.replace(co_freevars=code.co_freevars) for code in codes]

    def stop():
        for function, code in zip(functions, idle, strict=True):
            function.__code__ = code

    try:
        stop()
        yield stop
    finally:
        for function, code in zip(functions, codes, strict=True):
            function.__code__ = code


def _refuses(*_args, **_kwargs):
    from workbook.signature import REFUSED  # it runs with the names of the one it stands in for

    REFUSED.calls += 1
    raise RuntimeError("the course's own function is out of work")


def copies_of(references: list) -> list:
    """Other functions of this process with the same code: of a module that was imported once more.

    Only among the objects made since `gc.freeze`: to look at all of them takes half a second.
    """
    codes = {function.__code__ for each in references for function in _functions(each)}
    names = {code.co_name for code in codes}
    made = [each for each in gc.get_objects() if type(each) is FunctionType]
    return [each for each in made if each.__code__.co_name in names and each.__code__ in codes]


def _functions(reference) -> list:
    """The Python functions behind a function or a class."""
    members = vars(reference).values() if inspect.isclass(reference) else [reference]
    members = [getattr(member, "__func__", member) for member in members]
    return [member for member in members if inspect.isfunction(member)]
