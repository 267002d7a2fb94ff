"""The functions that a check relies on, kept as they were before any learner code ran.

A notebook may hold `torch.allclose = lambda *a: True`, by mistake or not. This module is imported
with the first cell; what it keeps is put back before a check and after each call of the
learner's function inside the child. `Surroundings` does the same for the process around it.
"""

import ast
import builtins
import collections
import contextlib
import copy
import fractions
import functools
import gc
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import linecache
import locale
import math
import operator
import os
import pathlib
import random
import re
import reprlib
import secrets
import select
import signal
import string
import sys
import time
import traceback
import types
import warnings
from contextlib import contextmanager

import numpy
import torch
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

# What the notebook's own machinery and the child set on purpose.
_LEFT_ALONE = {"input", "display", "get_ipython", "print", "exit", "quit"}
_BUILTIN_NAMES = frozenset(vars(builtins))
_MISSING = object()
_CONTAINERS = (dict, list, set)


class Kept:
    """The callables of some modules, classes and objects, as they are now: names, code, defaults.

    whole: owners of which everything is kept, constants and the contents of containers included.
    """

    def __init__(self, *owners, whole=()):
        self._owners = [(owner, _callables(owner), set(vars(owner))) for owner in owners]
        self._owners += [(owner, dict(vars(owner)), set(vars(owner))) for owner in whole]
        values = [value for _, kept, _ in self._owners for value in kept.values()]
        functions = {id(function): function for value in values for function in _functions(value)}
        self._functions = [
            (each, each.__code__, each.__defaults__, each.__kwdefaults__,
             tuple((each.__kwdefaults__ or {}).items()))
            for each in functions.values()
        ]
        held = {id(value): value for owner in whole for name, value in vars(owner).items()
                if type(value) in _CONTAINERS and not name.startswith("__")}
        self._contents = [(value, copy.copy(value)) for value in held.values()]

    # Bound at definition: after learner code has run, no builtin can be trusted.
    def restore(
        self, _vars=vars, _set=setattr, _del=delattr, _type=type, _is=isinstance,
        _missing=_MISSING, _left=_LEFT_ALONE, _builtins=builtins,
        _names=_BUILTIN_NAMES, _module=types.ModuleType, _list=list, _dict=dict,
        _len=len, _pairs=zip,
        _mro=type.__dict__["__mro__"].__get__,
    ) -> list:
        """Put back what was changed; returns (owner, name, value) of what stood in its place."""
        changed = []
        for owner, kept, known in self._owners:
            now = _vars(owner)
            for name, value in kept.items():
                if now.get(name, _missing) is not value and name not in _left:
                    changed.append((owner, name, now.get(name, _missing)))
                    _set(owner, name, value)
            new = [name for name in now if name not in known]
            if new and _is(owner, _module):  # it would stand before a builtin of the same name
                new = [name for name in new if name in _names and owner is not _builtins]
            elif new and _is(owner, _type):  # it would stand before a base's
                bases = [_vars(base) for base in _mro(owner)[1:-1]]
                new = [name for name in new if [1 for base in bases if name in base]]
            for name in new:
                changed.append((owner, name, now[name]))
                _del(owner, name)
        for function, code, defaults, named, items in self._functions:
            if function.__code__ is not code:
                changed.append((function, "__code__", function.__code__))
                function.__code__ = code
            if function.__defaults__ is not defaults:
                changed.append((function, "__defaults__", function.__defaults__))
                function.__defaults__ = defaults
            same = function.__kwdefaults__ is named
            for name, value in items:
                same = same and named.get(name, _missing) is value
            if not same:
                changed.append((function, "__kwdefaults__", function.__kwdefaults__))
                function.__kwdefaults__ = _dict(items) if items else named
        for container, contents in self._contents:
            same = _len(container) == _len(contents)
            if same and _is(container, _dict):
                for name, value in contents.items():
                    same = same and container.get(name, _missing) is value
            elif same:
                for one, other in _pairs(container, contents):
                    same = same and one is other
            if not same:
                container.clear()
                if _is(container, _list):
                    container.extend(contents)
                else:
                    container.update(contents)
        return changed


def _callables(owner) -> dict:
    """The names of an owner that hold something to be called (of a class, its properties too)."""
    kinds = (property, classmethod, staticmethod)
    return {name: value for name, value in vars(owner).items()
            if callable(value) or isinstance(value, kinds)}


def _functions(value) -> list:
    """The Python functions in a value of a namespace."""
    if type(value) is property:
        parts = [value.fget, value.fset, value.fdel]
    else:
        parts = [value.__func__ if type(value) in (classmethod, staticmethod) else value]
    return [part for part in parts if type(part) is types.FunctionType]


def beyond_reach(function):
    """A copy of a function with names of its own: patches of the original do not change it."""
    return types.FunctionType(function.__code__, dict(function.__globals__), function.__name__,
                              function.__defaults__, function.__closure__)


def classes_of(*modules) -> list[type]:
    """The classes that modules define."""
    return [value for module in modules for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__]


def _libraries() -> list:
    modules = [ast, builtins, collections, contextlib, copy, fractions, functools, hashlib,
               importlib, importlib.util, inspect, itertools, json, json.decoder, json.encoder,
               linecache, math, operator, os, pathlib, random, re, reprlib, secrets, select,
               signal, string, time, traceback, types, numpy, torch, torch.nn.functional,
               torch.autograd, torch.linalg]
    classes = [torch.Tensor, torch.nn.Module, json.JSONEncoder, json.JSONDecoder,
               type(os.environ), random.Random, fractions.Fraction, pathlib.Path, reprlib.Repr]
    return [*modules, *classes, json._default_encoder, json._default_decoder]


LIBRARIES = Kept(*_libraries())


class Surroundings:
    """Environment, folder, imports, signals and settings of this process, as they are now."""

    def __init__(self):
        self._environ, self._variables = os.environ, dict(os.environ)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._lists = [(each, list(each)) for each in
                       (sys.path, sys.meta_path, sys.path_hooks, warnings.filters, gc.callbacks)]
        self._modules = dict(sys.modules)
        self._signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._mask = os.umask(0o022)
        os.umask(self._mask)
        self._folder, self._locale = os.getcwd(), locale.setlocale(locale.LC_ALL)
        self._numpy, self._settings = numpy.geterr(), settings()

    def restore(self) -> list[str]:
        """Put everything back; the variables and modules that had been changed, in words."""
        sys.settrace(None)
        sys.setprofile(None)
        for each, kept in self._lists:
            each[:] = kept
        now = dict(self._environ)
        names = [name for name in {**now, **self._variables}
                 if now.get(name) != self._variables.get(name)]
        vars(os)["environ"] = self._environ
        os.environ.clear()
        os.environ.update(self._variables)
        replaced = [name for name, module in self._modules.items()
                    if sys.modules.get(name) is not module]
        sys.modules.update({name: self._modules[name] for name in replaced})
        sys.stdin, sys.stdout, sys.stderr = self._streams
        self._restore_process()
        return [f"the variable {name}" for name in names] + [f"the import of {n}" for n in replaced]

    def _restore_process(self) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        os.umask(self._mask)
        with contextlib.suppress(OSError):
            os.chdir(self._folder)
        locale.setlocale(locale.LC_ALL, self._locale)
        numpy.seterr(**self._numpy)
        restore_settings(self._settings)


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
        "the modes of torch (TorchFunctionMode)": _modes(),
    }


def _modes() -> tuple[int, int]:
    """How many modes stand between a call of torch and torch, without the default device's."""
    modes = torch.overrides._get_current_function_mode_stack()
    own = [mode for mode in modes if not isinstance(mode, DeviceContext)]
    return len(own), torch._C._len_torch_dispatch_stack()


def _leave_modes(kept: tuple[int, int]) -> None:
    torch.set_default_device(None)
    while _modes()[0] > kept[0]:
        torch.overrides._pop_mode()
    while _modes()[1] > kept[1]:
        _python_dispatch._pop_mode()


def restore_settings(before: dict) -> str:
    """Put the settings back; the name of one that had changed, else ""."""
    *others, last = before
    changed = last if _modes() != before[last] else ""
    if changed:  # a mode may lie about all the others
        _leave_modes(before[last])
    after = settings()
    changed = changed or next((name for name in others if after[name] != before[name]), "")
    if changed:
        grad, dtype, device, threads, seed, limit, _ = before.values()
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if device == torch.device("cpu") else device)
        torch.set_num_threads(threads)
        torch.default_generator.manual_seed(seed)
        sys.setrecursionlimit(limit)
    return changed
