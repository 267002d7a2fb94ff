"""Plain values of a check: copy them, compare them, refuse those that only pretend to be plain.

A learner's function may return an object whose `==` always says True; so values are compared by
exact type, part by part, and only types of libraries are let through (`foreign`).
"""

import math
import sys
from collections import OrderedDict, UserDict

import numpy as np
import torch

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SEQUENCES = (list, tuple)
_SETS = (set, frozenset)


def copied(value):
    """A copy of plain data, tensors and arrays; any other object stays the same object."""
    kind = type(value)
    if kind in _SEQUENCES:
        return kind(copied(item) for item in value)
    if kind is dict:
        return {key: copied(item) for key, item in value.items()}
    if kind is set:
        return set(value)
    if kind is torch.Tensor:
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value.copy() if kind is np.ndarray else value


def same(first, second, tol: float | None = None) -> bool:
    """Whether two values have the same types, shapes and numbers; NaN equals NaN.

    tol: absolute and relative; None takes 1e-5, for float64 tensors 1e-8 and for half
    precision 1e-2; 0 asks for exact equality.

    Example:
        >>> same({"f1": 0.5}, {"f1": 0.5000001}), same(1, 1.0)
        (True, False)
    """
    kind = type(first)
    if kind is not type(second):
        return False
    if kind in _SEQUENCES:
        return len(first) == len(second) and all(map(same, first, second, [tol] * len(first)))
    if kind is dict:
        return first.keys() == second.keys() and all(same(first[k], second[k], tol) for k in first)
    if issubclass(kind, (dict, UserDict)) and _of_a_library(kind):
        ordered = kind is not OrderedDict or list(first) == list(second)
        return ordered and same(dict(first.items()), dict(second.items()), tol)
    if kind is float:
        tol = 1e-5 if tol is None else tol
        close = math.isclose(first, second, rel_tol=tol, abs_tol=tol)
        return close or (first != first and second != second)
    if kind is np.ndarray:
        return same(torch.as_tensor(first), torch.as_tensor(second), tol)
    if isinstance(first, torch.Tensor):
        return _same_tensor(first.detach(), second.detach(), tol)
    if first is second or kind in (*_PLAIN, *_SETS):
        return first is second or first == second
    return _of_a_library(kind) and _equal_objects(first, second)


def _equal_objects(first, second) -> bool:
    try:
        return bool(first == second)
    except (TypeError, ValueError, RuntimeError):  # == of frames and tables gives no single truth
        return False


def _same_tensor(first: torch.Tensor, second: torch.Tensor, tol: float | None) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not first.is_floating_point():
        return torch.equal(first, second)
    tol = TOLERANCES.get(first.dtype, 1e-5) if tol is None else tol
    return torch.allclose(first, second, rtol=tol, atol=tol, equal_nan=True)


def foreign(value):
    """The first part of a value that is neither plain data nor of a library's type, else None.

    Generators, coroutines and objects of classes that a notebook defines are foreign.
    """
    kind = type(value)
    if kind in (*_SEQUENCES, *_SETS):
        return next((found for found in map(foreign, value) if found is not None), None)
    if kind is dict:
        return foreign([*value.keys(), *value.values()])
    return None if kind in _PLAIN or _of_a_library(kind) else value


def _of_a_library(kind: type) -> bool:
    module = None if kind.__module__ == "__main__" else sys.modules.get(kind.__module__)
    return getattr(module, kind.__qualname__, None) is kind
