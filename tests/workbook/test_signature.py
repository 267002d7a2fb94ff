"""Mistakes named by signature, and functions that only forward to the reference."""

import functools
import time

import pytest
import torch

from helpers import rewards
from helpers.losses import bradley_terry_loss, masked_mean
from tests.workbook.toy_course import make_course
from workbook import properties as engine
from workbook.check import check
from workbook.mistakes import Mistake
from workbook.properties import evaluate
from workbook.signature import depends_on, name_mistake, out_of_work, record
from workbook.values import same


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_PROGRESS", str(tmp_path))


def square(x):
    return (x * x).sum(0)


def square__values(fn):
    fn(torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True))


def named(function, *mistakes, reference=square, probes=()):
    fixtures = record([square__values] if reference is square else [], probes, reference, 0)
    known = [Mistake(each.__name__, "", each) for each in mistakes]
    found = name_mistake(function, reference, known, fixtures)
    return found.name if found else None


def cube(x):
    return (x**3).sum(0)


def detached(x):
    return square(x.detach())


def raises(x):
    raise ValueError("a shape")


def test_the_same_values_and_gradients_give_the_name():
    assert named(lambda x: (x * x * x).sum(0), cube, detached, raises) == "cube"
    assert named(lambda x: square(x).data, cube, detached, raises) == "detached"
    assert named(lambda x: torch.ones(2)[[5]], cube, detached) is None


def test_an_error_of_the_same_type_on_every_fixture_fits():
    def other_words(x):
        raise ValueError("other words")

    assert named(other_words, cube, raises) == "raises"
    assert named(lambda x: {}["key"], cube, raises) is None


def test_two_mistakes_that_fit_or_none_give_no_name():
    def cube_again(x):
        return cube(x)

    assert named(cube, cube, cube_again) is None
    assert named(lambda x: x.sum(0), cube, detached) is None
    assert named(square, cube, detached, square) is None  # right: nothing to name


def test_a_value_of_another_type_or_dtype_does_not_fit():
    assert named(lambda x: cube(x).tolist(), cube) is None
    assert named(lambda x: cube(x).double(), cube) is None


def test_numbers_are_compared_in_the_tolerance_of_their_precision():
    one = torch.ones(2, dtype=torch.float64)
    assert same(one, one + 1e-9) and not same(one, one + 1e-7)
    assert same(one.float(), one.float() + 1e-6) and not same(one.float(), one.float() + 1e-4)
    assert same(one.bfloat16(), one.bfloat16() + 0.0078)
    assert same({"a": [float("nan"), 1.0]}, {"a": [float("nan"), 1.0 + 1e-9]})
    assert not same(1, 1.0) and not same(True, 1) and not same([1], (1,))


class Scale(torch.nn.Module):
    factor = 2.0

    def forward(self, x):
        return x * self.factor


class Third(Scale):
    factor = 3.0


class Negated(Scale):
    def forward(self, x):
        return -super().forward(x)


def build_and_use(cls, rng):
    x = torch.full((2,), rng.random(), requires_grad=True)
    cls()(x).sum().backward()
    return {"out": cls()(x), "grad": x.grad}


def test_a_class_is_compared_by_what_its_probes_give():
    class Mine(torch.nn.Module):
        def forward(self, x):
            return x + x + x

    assert named(Mine, Third, Negated, reference=Scale, probes=[build_and_use]) == "Third"
    assert named(Mine, Negated, reference=Scale, probes=[build_and_use]) is None


def test_the_panel_shows_the_name_and_its_own_hint(evidence):
    def extract_answer(text):
        import re

        for form in (r"<answer>((?:(?!<answer>).)*?)</answer>", r"\\boxed\{([^{}]*)\}",
                     r"####[ \t]*([^\n]+)", r"answer is:?\s*(-?[$]?\d+(?:,\d{3})*(?:\.\d+)?)"):
            if found := re.search(form, text, re.DOTALL):
                return found[1].strip()
        return None

    rows = dict(check(extract_answer).rows)
    assert rows["mistake"] == "your function takes the first statement instead of the last"
    assert rows["hint"].startswith("re.search stops at the first match")


def test_naming_is_bounded_in_time_and_changes_no_outcome(monkeypatch):
    monkeypatch.setattr(engine, "NAMING_LIMIT", 0.3)
    calls = []

    def slow_later(text):  # fast while its properties run, for ever afterwards
        calls.append(text)
        if len(calls) > 40:
            time.sleep(60)
        return "wrong"

    started = time.monotonic()
    monkeypatch.setattr(engine, "_named", functools.partial(_named_late, engine._named, calls))
    found = evaluate("01", "extract_answer", slow_later)
    assert (found.outcome, found.mistake) == ("failed", None)
    assert time.monotonic() - started < 4


def _named_late(named, calls, *arguments):
    calls.extend(["late"] * 50)
    return named(*arguments)


# ---------------------------------------------------------------- the reference


def test_all_ways_to_hand_on_to_the_reference_are_told():
    reference = rewards.extract_answer

    def forwards(text):
        return reference(text)

    def looks_it_up(text):
        import importlib

        found = importlib.import_module("helpers.rewards").extract_answer(text)
        return found and found.strip()

    def falls_back(text):
        try:
            return reference(text)
        except ZeroDivisionError:
            return None

    for function in (reference, forwards, looks_it_up, falls_back, lambda text: reference(text),
                     functools.partial(reference), functools.wraps(reference)(forwards)):
        found = evaluate("01", "extract_answer", function)
        assert (found.outcome, found.score, found.held) == ("reference", 0.0, found.total)


def test_the_parts_of_a_reference_count_as_the_reference():
    def qa_scores(prediction, golds):
        return {"sub_em": rewards.sub_em(prediction, golds),
                "f1": rewards.token_f1(prediction, golds)}

    assert evaluate("01", "qa_scores", qa_scores).outcome == "reference"


def test_functions_of_other_exercises_may_be_used():
    from tests.mistakes.mistakes_01 import match_response, partition_tags

    assert evaluate("01", "r1_zero_reward", match_response).outcome == "passed"
    assert evaluate("01", "r1_zero_reward", partition_tags).outcome == "passed"


def test_a_fallback_to_own_code_is_own_code():
    from tests.mistakes.mistakes_01 import scan_from_the_end

    def compares(text):
        try:
            rewards.extract_answer(text)
        except RuntimeError:
            pass
        return scan_from_the_end(text)

    assert evaluate("01", "extract_answer", compares).outcome == "passed"


def test_a_class_that_inherits_the_reference_depends_on_it():
    fixtures = record([], [build_and_use], Scale, 0)

    class Mine(Scale):
        pass

    class Own(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    assert depends_on(Mine, [Scale], fixtures)
    assert not depends_on(Own, [Scale], fixtures)


def test_references_work_again_afterwards():
    with out_of_work([bradley_terry_loss, Negated]):
        with pytest.raises(RuntimeError, match="out of work"):
            bradley_terry_loss(torch.ones(1), torch.zeros(1))
        with pytest.raises(RuntimeError, match="out of work"):
            Negated()(torch.ones(1))
        assert masked_mean(torch.ones(2), torch.ones(2, dtype=torch.bool)) == 1
    assert bradley_terry_loss(torch.ones(1), torch.zeros(1)) > 0
    assert Negated()(torch.ones(1)) == -2


def test_in_a_toy_course_without_mistakes_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_ROOT", str(make_course(tmp_path / "course")))
    found = evaluate("90", "last_number", lambda text: "wrong", seed=4)
    assert (found.outcome, found.mistake, found.seed, found.total) == ("failed", None, 4, 3)
    assert found.score == 0 and [each["outcome"] for each in found.properties] == ["failed"] * 3
