'''Named mistakes of a lesson: wrong solutions that people do write, each with its own hint.

`tests/mistakes/mistakes_NN.py` holds them, beside correct variants that must pass:

    @mistake("last_number", "takes the first number", hint="re.search stops at the first match.")
    def first_number(text): ...

    @variant("last_number")                  # correct, by another algorithm than the solution's
    def scan_from_the_end(text): ...

    @combined("last_number", "takes the first number", "keeps the commas")
    def both(text): ...                      # two mistakes at once: gets no name, or a right one

    @probe("last_number")                    # more inputs on which mistakes are told apart
    def odd_texts(fn, rng):
        fn(f"{rng.random()} or 1,000")

A name goes on with "Your function ..." and says what it does. Where one function can hold several
mistakes, keywords switch them on; this registers each, and every pair as combined. Without a
switch the function must be right:

    @switches("last_number",
              first=("takes the first number", "re.search stops at the first match."),
              commas=("keeps the commas", "Take the commas out before you return."))
    def last_number(text, *, first=False, commas=False): ...

A probe of a class builds it, uses it, and returns what came out (plain values, tensors).
'''

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from workbook.progress import course_root


@dataclass(frozen=True)
class Mistake:
    """A wrong solution, what it does in words, and the hint that helps."""

    name: str
    hint: str
    function: Callable


@dataclass
class ExerciseMistakes:
    """What a mistakes file says of one exercise."""

    mistakes: list[Mistake] = field(default_factory=list)
    variants: list[Callable] = field(default_factory=list)
    bases: list[Callable] = field(default_factory=list)
    combined: list[tuple[frozenset[str], Callable]] = field(default_factory=list)
    probes: list[Callable] = field(default_factory=list)


_filling: dict[str, ExerciseMistakes] = {}


def _of(exercise: str) -> ExerciseMistakes:
    return _filling.setdefault(exercise, ExerciseMistakes())


def mistake(exercise: str, name: str, *, hint: str) -> Callable:
    """Register a wrong solution. `name` goes on with "Your function ..."."""

    def register(function):
        _of(exercise).mistakes.append(Mistake(name, hint, function))
        return function

    return register


def variant(exercise: str) -> Callable:
    """Register a correct solution of another algorithm."""

    def register(function):
        _of(exercise).variants.append(function)
        return function

    return register


def combined(exercise: str, *names: str) -> Callable:
    """Register a solution that holds several of the named mistakes at once."""

    def register(function):
        _of(exercise).combined.append((frozenset(names), function))
        return function

    return register


def switches(exercise: str, **named: tuple[str, str]) -> Callable:
    """Register a function whose keywords each switch on one mistake: keyword=(name, hint)."""

    def register(function):
        _of(exercise).bases.append(function)
        for keyword, (name, hint) in named.items():
            mistake(exercise, name, hint=hint)(functools.partial(function, **{keyword: True}))
        for first, second in combinations(named, 2):
            both = functools.partial(function, **{first: True, second: True})
            combined(exercise, named[first][0], named[second][0])(both)
        return function

    return register


def probe(exercise: str) -> Callable:
    """Register `probe(fn, rng)`, which calls the function on inputs that no property uses."""

    def register(function):
        _of(exercise).probes.append(function)
        return function

    return register


def mistakes_file(lesson: str) -> Path:
    """Where the named mistakes of a lesson stand."""
    return course_root() / "tests" / "mistakes" / f"mistakes_{lesson}.py"


def lessons_with_mistakes() -> list[str]:
    """The lessons that have a mistakes file."""
    folder = mistakes_file("00").parent
    return sorted(path.stem[-2:] for path in folder.glob("mistakes_[0-9][0-9].py"))


def exercise_mistakes(lesson: str, exercise: str) -> ExerciseMistakes:
    """The named mistakes of an exercise; an empty record where the lesson has no file."""
    path = mistakes_file(lesson)
    if not path.exists():
        return ExerciseMistakes()
    return _load(path, path.stat().st_mtime_ns).get(exercise, ExerciseMistakes())


@functools.lru_cache(maxsize=32)
def _load(path: Path, _changed: int) -> dict[str, ExerciseMistakes]:
    _filling.clear()
    spec = importlib.util.spec_from_file_location(f"workbook_{path.stem}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return dict(_filling)
