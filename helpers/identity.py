"""What a thing is, in sixteen hexadecimal digits: weights, models, tokenizers, functions.

Two things that may give other numbers get other digits, and a thing that is made anew, in another
process too, gets the same. So they say whether a run, a reference or a result is that of before.
"""

import dis
import hashlib
import importlib.util
import inspect
import json
import os
import random
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

LARGE = 2**26  # bytes from which weights are hashed on several threads
# Parts of a model's configuration that decide no number.
SILENT_CONFIG = {"_name_or_path", "name_or_path", "transformers_version", "use_cache", "dtype",
                 "torch_dtype", "architectures"}
# What a layer holds, beside its tensors, that decides numbers; `p` is dropout's share.
LAYER_NUMBERS = ("p", "scaling", "eps", "variance_epsilon", "active_adapters", "disable_adapters")
COURSE = str(Path(__file__).resolve().parent) + os.sep
LIBRARIES = tuple(
    str(Path(folder)) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (folder := sysconfig.get_path(name))
)
PLAIN = (type(None), bool, int, float, complex, str, bytes)
CONTAINERS = (tuple, list, dict, set, frozenset, types.CodeType)
BOUND = (types.BuiltinMethodType, types.MethodWrapperType)  # such as re.compile("a").search
FUNCTIONS = (types.FunctionType, types.MethodType, *BOUND, partial)
# Parts of an object of another package that are values or code; others may be open files.
SHOWN = (*PLAIN, *FUNCTIONS, list, tuple, dict, set, frozenset, np.ndarray, torch.Tensor,
         types.SimpleNamespace)
ROWS = ("to_pylist", "to_dicts", "to_list")  # of tables, whose own print leaves rows out
# What a class holds that its methods and values do not show.
CLASS_NAMES = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__",
               "__annotations__", "__annotate_func__", "__annotations_cache__",
               "__abstractmethods__", "_abc_impl", "__firstlineno__", "__static_attributes__"}


def tensors_identity(tensors: Mapping[str, torch.Tensor]) -> str:
    """Names tensors: changes with any name, shape, type or value."""
    names = sorted(tensors)
    values = [tensors[name] for name in names]
    if sum(tensor.numel() * tensor.element_size() for tensor in values) < LARGE:
        return _digits(*map(_tensor, names, values))
    with ThreadPoolExecutor() as pool:
        return _digits(*pool.map(_tensor, names, values))


def _tensor(name: str, tensor: torch.Tensor) -> bytes:
    raw = tensor.detach().to_dense().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    about = f"{name} {tuple(tensor.shape)} {tensor.dtype} "
    return hashlib.sha256(about.encode() + hashlib.sha256(raw).digest()).digest()


def _digits(*parts: str | bytes) -> str:
    raw = [part if isinstance(part, bytes) else part.encode("utf-8", "replace") for part in parts]
    return hashlib.sha256(b"\0".join(raw)).hexdigest()[:16]


def model_identity(model: torch.nn.Module, *, trained: bool = True) -> str:
    """Names a model: all its weights, packed ones too, its configuration, scalings, dropout.

    trained: with the parameters that are trained; without them it is the base of a run.
    """
    left_out = set() if trained else {p.data_ptr() for p in model.parameters() if p.requires_grad}
    # Not the buffers that are not saved, such as rotary frequencies: the configuration makes them.
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if torch.is_tensor(value) and value.data_ptr() not in left_out
    }
    return _digits(tensors_identity(tensors), value_identity(_settings(model)))


def _settings(model: torch.nn.Module) -> list:
    config = getattr(model, "config", None)
    config = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
    return [
        {name: value for name, value in config.items() if name not in SILENT_CONFIG},
        [(name, type(layer).__name__, numbers) for name, layer in model.named_modules()
         if (numbers := _layer_numbers(layer))],
    ]


def _layer_numbers(layer: torch.nn.Module) -> dict[str, Any]:
    found = {name: getattr(layer, name, None) for name in LAYER_NUMBERS}
    return {k: v for k, v in found.items() if isinstance(v, (int, float, str, list, dict))}


def tokenizer_identity(tokenizer) -> str:
    """Names a tokenizer: how it cuts texts into tokens, its special tokens, its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        made = json.loads(backend.to_str())
        # What the last call asked for, and no part of the tokenizer.
        made = {name: part for name, part in made.items() if name not in ("truncation", "padding")}
    else:
        made = tokenizer.get_vocab()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    begun = tokenizer("a 1")["input_ids"]  # with BOS, where it is put before a text
    return _digits(json.dumps([made, special, template, begun], sort_keys=True, default=str))


def value_identity(*values: Any) -> str:
    """Names values and functions by what decides their results.

    A function counts with its code, defaults, what it closes over and the globals that it uses; an
    object with its class and its attributes; `functools.partial` with its arguments. Functions of
    installed packages count by their names, those of this package by their source.

    Example:
        >>> value_identity(partial(max, 1)) == value_identity(partial(max, 2))
        False
    """
    return _Description().of(values)


class _Description:
    """Writes down a value part by part; what was met before is named by its number.

    That holds for functions, classes and objects. Equal tuples and lists may be one or two, as the
    compiler likes: of them only those that hold themselves are named so.
    """

    def __init__(self):
        self.hash, self.met = hashlib.sha256(), {}

    def of(self, value: Any) -> str:
        self.add(value)
        return self.hash.hexdigest()[:16]

    def text(self, *parts: Any) -> None:
        raw = " ".join(map(str, parts)).encode("utf-8", "backslashreplace")
        self.hash.update(f"{len(raw)} ".encode() + raw)

    def add(self, value: Any) -> None:
        if type(value) in PLAIN:
            self.text(type(value).__name__, repr(value))
        elif id(value) in self.met:
            self.text("again", self.met[id(value)][0])
        else:
            self.met[id(value)] = (len(self.met), value)  # held, so that no other gets its id
            self._of_kind(value)
            if isinstance(value, CONTAINERS):
                del self.met[id(value)]

    def _of_kind(self, value: Any) -> None:
        if isinstance(value, torch.nn.Module):
            self._module(value)
        elif torch.is_tensor(value):
            self.text("tensor", tensors_identity({"": value}))
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, partial):
            self.text("partial")
            self._all(value.func, value.args, value.keywords, vars(value))
        elif isinstance(value, types.MethodType):
            self.text("method")
            self._all(value.__func__, value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, BOUND):
            self.text("method", value.__name__)
            self.add(value.__self__)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            self.text("module", value.__name__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.text(type(value).__name__)
            self.add(value.__func__)
        elif isinstance(value, property):
            self.text("property")
            self._all(value.fget, value.fset)
        elif isinstance(value, (*CONTAINERS, *PLAIN[1:])) and not _is_of_library(type(value)):
            self._own_container(value)
        elif isinstance(value, Mapping):
            self._mapping(value)
        elif isinstance(value, (set, frozenset)):
            self.text(type(value).__name__, len(value))
            self._all(*sorted(value, key=_order))
        elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
            self.text(type(value).__name__, len(value))
            self._all(*value)
        else:
            self._object(value)

    def _all(self, *values: Any) -> None:
        for value in values:
            self.add(value)

    def _array(self, value: np.ndarray) -> None:
        self.text("array", value.dtype, value.shape)
        if value.dtype.hasobject:
            self._all(*value.ravel().tolist())
        else:
            self.hash.update(np.ascontiguousarray(value).tobytes())

    def _own_container(self, value: Any) -> None:
        """Of a class of the user's that is a list, a dict, a number or a text, and more."""
        self.add(type(value))
        kind = next(kind for kind in type(value).__mro__ if kind in (*CONTAINERS, *PLAIN))
        if kind in PLAIN:
            self.text(kind.__name__, kind.__repr__(value))
        else:
            self.add(dict(kind.items(value)) if kind is dict else kind(kind.__iter__(value)))
        self._all(*_attributes(value))

    def _mapping(self, value: Mapping) -> None:
        self.text(type(value).__name__, len(value))
        self.add(getattr(value, "default_factory", None))
        for name in sorted(value, key=_order):
            self._all(name, value[name])

    def _module(self, value: torch.nn.Module) -> None:
        self.text("model", model_identity(value))
        for part in value.modules():
            if not _is_of_library(type(part)):
                self.add(type(part))
                self._shown(part, leave_out=("training",))
            self._all(*part._forward_pre_hooks.values(), *part._forward_hooks.values())

    def _function(self, value: types.FunctionType) -> None:
        file = value.__code__.co_filename
        if _is_library_file(file):
            self.text("library", value.__module__, value.__qualname__)
        elif file.startswith(COURSE):
            self.text("course", value.__module__, value.__qualname__, _source(value))
        else:
            self.text("function")
            self.add(value.__code__)
            self._globals(value)
        self._all(value.__defaults__, value.__kwdefaults__, vars(value))
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            self.text(name)
            self.add(_content(cell))

    def _code(self, value: types.CodeType) -> None:
        """The compiled code and not its text: two functions may stand in one line, and a file may
        have changed since it was imported."""
        self.text("code", value.co_names, value.co_varnames, value.co_flags)
        self.hash.update(value.co_code)
        self.add(value.co_consts)

    def _globals(self, function: types.FunctionType) -> None:
        known = function.__globals__
        for name in sorted(_names_used(function.__code__) & known.keys()):
            self.text("global", name)
            self._used(known[name], _attributes_used(function.__code__))
        for name in sorted(_modules_imported(function.__code__)):
            self.text("import", name, _file_of_module(name))

    def _used(self, value: Any, names: set[str]) -> None:
        """A value; of a module of the user's also what is taken from it, and from inner ones."""
        is_known = id(value) in self.met
        self.add(value)
        if isinstance(value, types.ModuleType) and not is_known and not _is_of_library(value):
            for name in sorted(names & vars(value).keys()):
                self.text(name)
                self._used(vars(value)[name], names)

    def _class(self, value: type) -> None:
        self.text("class", value.__qualname__)
        if type(value) is not type:
            self.add(type(value))
        if _is_of_library(value) or _is_of_course(value):
            self.text(value.__module__)
            return
        self._all(*value.__mro__[1:])
        for name in sorted(vars(value).keys() - CLASS_NAMES):
            self.text(name)
            self.add(vars(value)[name])

    def _object(self, value: Any) -> None:
        kind = type(value)
        if hasattr(kind, "get_vocab") and hasattr(value, "special_tokens_map"):
            self.text("tokenizer", tokenizer_identity(value))
        elif _is_of_course(kind) and isinstance(getattr(value, "identity", None), str):
            self.text(kind.__qualname__, value.identity)
        elif isinstance(value, re.Pattern):
            self._all("pattern", value.pattern, value.flags)
        elif _is_of_library(kind):
            self.text(kind.__module__, kind.__qualname__, _shown_text(value))
            self._all(_random_state(value), _rows(value))
            self.add(getattr(value, "__dict__", {}).get("__wrapped__"))  # of functools.cache
            self._shown(value)
        else:
            self.add(kind)
            self._all(*_attributes(value))

    def _shown(self, value: Any, leave_out: Iterable[str] = ()) -> None:
        """The public attributes that are values: others may be open files, or half a program."""
        for name, part in sorted(getattr(value, "__dict__", {}).items()):
            if not name.startswith("_") and name not in leave_out and isinstance(part, SHOWN):
                self._all(name, part)


def _order(value: Any) -> tuple[str, str]:
    """Sorts keys of several types; those without a value of their own keep their places."""
    shown = repr(value) if type(value) in (*PLAIN, tuple) else ""
    return type(value).__name__, "" if " at 0x" in shown else shown


def _attributes(value: Any) -> Iterator[Any]:
    for name, part in sorted(getattr(value, "__dict__", {}).items()):
        yield from (name, part)
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield from (name, getattr(value, name, None))


def _shown_text(value: Any) -> str:
    """What an object of another package prints of itself, such as a Decimal; no address."""
    shown = repr(value)
    return "" if " at 0x" in shown else shown


def _random_state(value: Any) -> Any:
    """Where a generator of random numbers stands; None of anything else."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, (np.random.RandomState, torch.Generator)):
        return value.get_state()
    return None


def _rows(value: Any) -> Any:
    """All that a table holds (of pandas, datasets, arrow); None of anything else."""
    kind = type(value)
    if hasattr(kind, "iloc"):
        return (value.to_frame() if hasattr(kind, "to_frame") else value).to_dict("split")
    name = next((name for name in ROWS if hasattr(kind, name)), None)
    return getattr(value, name)() if name else None


def _content(cell) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _source(function: types.FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions inside it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _codes(part)


def _names_used(code: types.CodeType) -> set[str]:
    return {
        step.argval
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }


def _attributes_used(code: types.CodeType) -> set[str]:
    return {name for part in _codes(code) for name in part.co_names}


def _modules_imported(code: types.CodeType) -> set[str]:
    return {
        step.argval
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname == "IMPORT_NAME"
    }


def _file_of_module(name: str) -> str:
    """The digits of a module's file where it is the user's: a function may import it when called,
    and is the same function before and after that."""
    try:
        file = importlib.util.find_spec(name).origin
        is_theirs = not _is_library_file(file) and not file.startswith(COURSE)
        return _digits(Path(file).read_bytes()) if is_theirs else ""
    except (ImportError, OSError, ValueError, AttributeError, TypeError):
        return ""


def _is_of_library(thing: type | types.ModuleType) -> bool:
    """Whether a class or module belongs to Python or to an installed package."""
    name = str(thing.__module__ if isinstance(thing, type) else thing.__name__)
    if name.partition(".")[0] in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    # What started the program (pytest, a profiler) is a library, what is defined there is not.
    return name != "__main__" and file is not None and _is_library_file(file)


def _is_of_course(kind: type) -> bool:
    return str(kind.__module__).startswith("helpers.")


def _is_library_file(file: str) -> bool:
    is_installed = "site-packages" in file or "dist-packages" in file
    return is_installed or file.startswith(("<frozen", *LIBRARIES))
