"""The proof of every mistakes file: names are right, variants pass, stubs and solutions score.

A lesson takes part as soon as it has a file tests/mistakes/mistakes_NN.py.
"""

import random

import pytest

from tests.mistakes.naming import EXERCISES, IDS, SEEDS, judge, name_of
from workbook.build import find_source, solution_functions
from workbook.hints import reference_function
from workbook.mistakes import exercise_mistakes
from workbook.properties import evaluate, properties
from workbook.signature import record, uses
from workbook.values import same

pytestmark = pytest.mark.parametrize(("lesson", "exercise"), EXERCISES, ids=IDS)


def test_there_are_enough_mistakes_and_variants(lesson, exercise):
    known = exercise_mistakes(lesson, exercise)
    assert len(known.mistakes) >= 4 and len(known.variants) >= 2
    names = [mistake.name for mistake in known.mistakes]
    assert len(set(names)) == len(names)
    assert all(names <= set(m.name for m in known.mistakes) for names, _ in known.combined)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_mistake_fails_and_gets_its_own_name(lesson, exercise, seed):
    wrong = {}
    for mistake in exercise_mistakes(lesson, exercise).mistakes:
        passed, name = judge(lesson, exercise, mistake.function, seed)
        if passed or name != mistake.name:
            wrong[mistake.name] = "it passes" if passed else f"it is named {name!r}"
    assert not wrong


@pytest.mark.parametrize("seed", SEEDS)
def test_combined_mistakes_get_no_name_or_one_of_theirs(lesson, exercise, seed):
    for names, function in exercise_mistakes(lesson, exercise).combined:
        assert name_of(lesson, exercise, function, seed) in (None, *names)


@pytest.mark.parametrize("seed", SEEDS)
def test_other_algorithms_pass(lesson, exercise, seed):
    known = exercise_mistakes(lesson, exercise)
    for function in (*known.variants, *known.bases):
        assert judge(lesson, exercise, function, seed)[0], function.__name__


@pytest.mark.parametrize("function", [lambda *a, **k: None, lambda *a, **k: 1 / 0, lambda *a: a[0]],
                         ids=["nothing", "an error", "its argument"])
def test_a_function_that_is_wrong_in_another_way_gets_no_name(lesson, exercise, function):
    assert name_of(lesson, exercise, function, seed=1) is None


def test_in_a_child_as_for_a_learner(lesson, exercise):
    seed = random.randrange(10**6)
    known = exercise_mistakes(lesson, exercise)
    mistake = random.choice(known.mistakes)
    found = evaluate(lesson, exercise, mistake.function, seed)
    assert found.outcome in ("failed", "raised") and found.score < 1, (mistake.name, seed)
    assert found.mistake in (mistake, None), (mistake.name, seed)  # None: a busy machine
    passed = evaluate(lesson, exercise, known.variants[0], seed)
    assert (passed.outcome, passed.score, passed.held) == ("passed", 1.0, passed.total)


def test_stub_and_empty_notebook_score_nothing_and_the_solution_all(lesson, exercise):
    def stub(*args, **kwargs):
        raise NotImplementedError()

    empty = evaluate(lesson, exercise, stub)
    assert (empty.outcome, empty.score) == ("not attempted", 0.0)
    solution = evaluate(lesson, exercise, solution_functions(find_source(lesson))[exercise])
    assert (solution.outcome, solution.score) == ("passed", 1.0)
    reference = evaluate(lesson, exercise, reference_function(exercise))
    assert (reference.outcome, reference.score) == ("reference", 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_solution_is_the_reference_in_value_and_gradient(lesson, exercise, seed):
    reference = reference_function(exercise)
    solution = solution_functions(find_source(lesson))[exercise]
    probes = exercise_mistakes(lesson, exercise).probes
    for use in uses(record(properties(lesson, exercise), probes, reference, seed)):
        assert same(use(solution), use(reference))
