"""`fn` for the lesson checks: the helpers function and the solution's own cell, over some seeds."""

import random

import pytest

from tests.lessons import asserts
from workbook.build import find_source, solution_functions
from workbook.hints import reference_function

SEEDS = (0, 1, 2)
_solutions: dict[str, dict] = {}


def _exercise(request) -> str:
    return request.function.__name__.removeprefix("test_").partition("__")[0]


@pytest.fixture(params=["helpers", "solution"])
def fn(request):
    """The function under test, watched as it is in a notebook."""
    name = _exercise(request)
    if request.param == "helpers":
        return asserts.watch(reference_function(name))
    lesson = request.path.stem.removeprefix("test_")[:2]
    if lesson not in _solutions:
        _solutions[lesson] = solution_functions(find_source(lesson))
    return asserts.watch(_solutions[lesson][name])


@pytest.fixture(params=SEEDS)
def seed(request):
    """A seed for a check that makes its own fixtures."""
    return request.param


@pytest.fixture
def rng(seed):
    """A random.Random of the seed."""
    return random.Random(seed)
