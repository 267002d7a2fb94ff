"""Assertions for the lesson checks: each failure carries the call, expected, got and a hint.

A test in `tests/lessons/test_NN_name.py` is a plain function:

    def test_masked_mean__empty_mask_gives_zero(fn):
        "An empty mask gives 0, not NaN."
        got = fn(torch.ones(2), torch.zeros(2, dtype=torch.bool))
        assert_close(got, 0.0, hint="Divide by max(count, 1).")

`fn` is the learner's function. `pytest` runs the test against the solutions; `check` runs it in a
forked child against the notebook. Both wrap `fn` with `watch`, so the failing call is known
without the test's help.
"""

import inspect
import math
import random
import reprlib

import torch

from workbook.pristine import restore_settings, settings
from workbook.values import copied, foreign, same

# Bound before any learner code runs, so that patching torch in a notebook changes no check.
_is_tensor = torch.is_tensor
_isclose = torch.isclose

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 160
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 12

LONGEST_TEXT = 400


class CheckFailed(AssertionError):
    """A property that does not hold, with what a learner needs to see it."""

    def __init__(self, expected: str, got: str, hint: str = "", call: str = ""):
        self.call = call or LAST.call
        self.expected = expected
        self.got = got
        self.hint = hint
        parts = [("call", self.call), ("expected", expected), ("got", got), ("hint", hint)]
        super().__init__("\n".join(f"{name}: {text}" for name, text in parts if text))


class LastCall:
    """The most recent call of a watched function, as text."""

    call = ""
    returned = ""


LAST = LastCall()


def show(value: object) -> str:
    """Short text of a value: small tensors in full, large ones by shape and dtype."""
    if _is_tensor(value):
        text = _tensor_text(value.detach())
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = _repr(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _repr(value: object) -> str:
    try:
        return _REPR.repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: its repr raises {type(error).__name__}>"


def _tensor_text(tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.numel() > 16:
        return f"tensor of shape {tuple(tensor.shape)}, {kind}"
    numbers = _rounded(tensor.tolist())
    return f"tensor({numbers}, {kind})"


def _rounded(value: object) -> object:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def call_text(name: str, args: tuple, kwargs: dict) -> str:
    """The call as it would be typed: `call_text("f", (1,), {"k": 2})` is `f(1, k=2)`."""
    shown = [show(arg) for arg in args] + [f"{key}={show(arg)}" for key, arg in kwargs.items()]
    return f"{name}({', '.join(shown)})"


def nothing() -> None:
    """What follows a call in the tests; in a check it puts patched libraries back."""


def watch(fn, after=nothing):
    """Wrap a function so that its last call is known to the assertions; a class stays as it is.

    A call also fails the property at hand when it changes its arguments or a setting of the
    process, or returns an object that is neither plain data nor of a library.
    """
    if issubclass(type(fn), type):  # isinstance would ask the object itself
        return fn
    name = _name_of(fn)

    def watched(*args, **kwargs):
        LAST.call, LAST.returned = call_text(name, args, kwargs), ""
        given, setting = copied([*args, kwargs]), settings()
        try:
            result = fn(*args, **kwargs)
        finally:
            after()
            changed = restore_settings(setting)
        if changed:
            raise CheckFailed("the settings as they were", f"it changes {changed}", SETTING_HINT)
        odd = foreign(result)
        if odd is not None:
            says = f"an object of the type {type(odd).__name__}"
            raise CheckFailed("plain values, tensors or objects of a library", says, FOREIGN_HINT)
        LAST.returned = show(result)
        if not same(given, [*args, kwargs], tol=0):
            raise CheckFailed("arguments that stay as they are", "it changes its argument: now "
                              + call_text(name, args, kwargs), MUTATION_HINT)
        return result

    watched.__name__ = name
    return watched


def _name_of(fn) -> str:
    try:
        name = fn.__name__
    except Exception:  # an object may answer anything when it is asked for an attribute
        name = ""
    return name if type(name) is str and name else "your_function"


SETTING_HINT = "All code that runs later would feel it. Use a block: `with torch.no_grad():`."
FOREIGN_HINT = "Return the value itself: no generator, no object of a class of your own."
MUTATION_HINT = "The caller still needs what it handed over: work on a copy."


def fixture_arguments(test, fn, seed: int) -> dict:
    """The arguments a test asks for by name: `fn`, and for random fixtures `seed` or `rng`."""
    known = {"fn": fn, "seed": seed, "rng": random.Random(seed)}
    return {name: known[name] for name in inspect.signature(test).parameters}


def assert_equal(got, expected, *, hint: str = "", call: str = "") -> None:
    """`got` has the type and the value of `expected`; True is not 1, and 1 is not 1.0."""
    if not same(got, expected, tol=0):
        raise CheckFailed(show(expected), show(got), hint or _type_hint(got, expected), call)


def assert_true(condition, *, expected: str, got="", hint: str = "", call: str = "") -> None:
    """A property that is no equality: say in words what was expected."""
    if not condition:
        raise CheckFailed(expected, got if isinstance(got, str) else show(got), hint, call)


def assert_close(got, expected, *, tol: float = 1e-5, hint: str = "", call: str = "") -> None:
    """A number (or a one-element tensor) within `tol`; a bool is not a number."""
    number = got.item() if _is_tensor(got) and got.numel() == 1 else got
    wrong_kind = isinstance(number, bool) or not isinstance(number, (int, float))
    if wrong_kind or not math.isclose(number, expected, rel_tol=tol, abs_tol=tol):
        raise CheckFailed(show(expected), show(got), hint or _type_hint(got, expected), call)


def assert_close_tensor(got, expected, *, tol=1e-5, hint: str = "", call: str = "") -> None:
    """A tensor of the same shape and dtype, every element within `tol`."""
    if not _is_tensor(got):
        raise CheckFailed(show(expected), show(got), hint or _type_hint(got, expected), call)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        want = f"shape {tuple(expected.shape)}, {expected.dtype}"
        raise CheckFailed(want, f"shape {tuple(got.shape)}, {got.dtype}", hint, call)
    close = _isclose(got.double(), expected.double(), rtol=tol, atol=tol)
    if not bool(close.all()):
        where = (~close).nonzero()[0].tolist()
        want, have = expected[tuple(where)], got[tuple(where)]
        raise CheckFailed(_element(expected, where, want), _element(got, where, have), hint, call)


def _element(tensor: torch.Tensor, where: list[int], value: torch.Tensor) -> str:
    if tensor.numel() <= 16:
        return show(tensor)
    return f"{value.item():.6g} at index {where} of shape {tuple(tensor.shape)}"


def assert_cases(fn, cases, *, close: bool = False, tol: float = 1e-5, hint: str = "") -> None:
    """Every `(arguments, expected)` or `(arguments, expected, hint)` holds.

    Of several failures the one with the shortest call is shown. A single argument needs no tuple.

        assert_cases(fn, [("#### 18", "18"), ("no number", None)])
    """
    failures = []
    for arguments, expected, *own_hint in cases:
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        try:
            says = own_hint[0] if own_hint else hint
            if close:
                assert_close(fn(*arguments), expected, tol=tol, hint=says)
            else:
                assert_equal(fn(*arguments), expected, hint=says)
        except CheckFailed as failure:
            failures.append(failure)
    if failures:
        raise min(failures, key=lambda failure: len(failure.call))


def _type_hint(got, expected) -> str:
    if got is None and expected is not None:
        return "The function returned None: is a return missing?"
    if type(got) is not type(expected) and not _is_tensor(expected):
        return f"The result is a {type(got).__name__}; expected a {type(expected).__name__}."
    return ""
