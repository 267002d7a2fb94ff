"""The functions that a check relies on, kept as they were before any learner code ran.

A notebook may hold `torch.allclose = lambda *a: True`, by mistake or not. This module is imported
with the first cell; what it keeps is put back before a check and after each call of the
learner's function inside the child.
"""

import builtins
import collections
import fractions
import functools
import inspect
import itertools
import json
import math
import os
import random
import re
import string
import sys
import time
from contextlib import contextmanager

import numpy
import torch

# What the notebook's own machinery and the child set on purpose.
_LEFT_ALONE = {"input", "display", "get_ipython", "print", "exit", "quit"}
_MISSING = object()


class Kept:
    """The callables of some modules and classes, as they are now."""

    def __init__(self, *owners):
        self._owners = [
            (owner, {name: value for name, value in vars(owner).items()
                     if callable(value) or isinstance(value, (property, classmethod))})
            for owner in owners
        ]

    # Bound at definition: after learner code has run, no builtin can be trusted.
    def restore(self, _vars=vars, _set=setattr, _del=delattr, _is=isinstance, _type=type) -> list:
        """Put back what was changed; returns (owner, name, value) of what stood in its place."""
        changed = []
        for owner, kept in self._owners:
            now = _vars(owner)
            for name, value in kept.items():
                if name not in _LEFT_ALONE and now.get(name, _MISSING) is not value:
                    changed.append((owner, name, now.get(name, _MISSING)))
                    _set(owner, name, value)
            if _is(owner, _type):
                for name in [name for name in now if name not in kept and _hides(owner, name)]:
                    changed.append((owner, name, now[name]))
                    _del(owner, name)
        return changed


def _hides(owner: type, name: str, _vars=vars, _callable=callable) -> bool:
    """Whether a new method of a class hides one of a base, as Tensor.item would."""
    if not _callable(_vars(owner)[name]):
        return False
    for base in owner.__mro__[1:-1]:
        if name in _vars(base):
            return True
    return False


def _libraries() -> list:
    modules = [builtins, collections, fractions, functools, inspect, itertools, json, math, os,
               random, re, string, time, numpy, torch, torch.nn.functional, torch.autograd,
               torch.linalg]
    return [*modules, torch.Tensor, torch.nn.Module]


LIBRARIES = Kept(*_libraries())


@contextmanager
def as_kept(*more: Kept):
    """The libraries (and more) as they were kept; what the notebook made of them comes back."""
    changed = [change for kept in (LIBRARIES, *more) for change in kept.restore()]
    try:
        yield
    finally:
        for owner, name, value in changed:
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def settings() -> dict:
    """The settings of the process that a function must leave as it found them."""
    return {
        "the gradient mode (torch.set_grad_enabled)": torch.is_grad_enabled(),
        "the default dtype (torch.set_default_dtype)": torch.get_default_dtype(),
        "the default device (torch.set_default_device)": torch.get_default_device(),
        "the number of threads (torch.set_num_threads)": torch.get_num_threads(),
        "the random seed (torch.manual_seed)": torch.initial_seed(),
        "the recursion limit (sys.setrecursionlimit)": sys.getrecursionlimit(),
    }


def restore_settings(before: dict) -> str:
    """Put the settings back; the name of one that had changed, else ""."""
    after = settings()
    changed = next((name for name in before if after[name] != before[name]), "")
    if changed:
        grad, dtype, device, threads, seed, limit = before.values()
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if device == torch.device("cpu") else device)
        torch.set_num_threads(threads)
        torch.default_generator.manual_seed(seed)
        sys.setrecursionlimit(limit)
    return changed
