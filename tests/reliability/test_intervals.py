"""No finite sample is certain: intervals have a width, and hold the truth as often as they say."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from helpers.comparison import difference_of_rates, paired_bootstrap
from helpers.evaluation import (
    best_of_n,
    bootstrap_interval,
    mean_interval,
    mean_pass_at_k,
    paired_test,
    summarise,
    summarise_rates,
    wilson_interval,
)
from tests.benchmarks.interval_coverage import draw, holds

PROBLEMS = 30
IDS = [k // 4 for k in range(4 * PROBLEMS)]


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97, 0.99])
def test_coverage_where_the_samples_of_a_problem_agree(p):
    """By enumeration: the number of problems that are solved is binomial."""
    found = [mean_interval([1.0] * (4 * k) + [0.0] * (4 * (PROBLEMS - k)), IDS)
             for k in range(PROBLEMS + 1)]
    weights = binom.pmf(range(PROBLEMS + 1), PROBLEMS, p)
    assert sum(w for w, interval in zip(weights, found, strict=True) if holds(interval, p)) > 0.9


@pytest.mark.parametrize("kind", ["alike", "beta 1"])
@pytest.mark.parametrize("p", [0.97, 0.99])
def test_coverage_near_certainty(p, kind):
    """Sixty data sets with a fixed seed; the whole simulation is a benchmark."""
    rng = np.random.default_rng(1)
    held = [holds(mean_interval(*draw(rng, p, PROBLEMS, kind)), p) for _ in range(60)]
    assert np.mean(held) > 0.9


def test_one_result_a_problem_is_wilsons_and_repeats_are_no_problems():
    assert mean_interval([1.0] * 9 + [0.0], range(10)) == wilson_interval(9, 10)
    once, often = (mean_interval([1.0, 1.0, 0.0] * times, [1, 2, 3] * times) for times in (2, 50))
    assert once == often  # the same three problems, asked again and again
    assert often[1] - often[0] > 0.5


def test_a_problem_counts_by_its_samples():
    """One problem with 90 right samples and nine with one wrong each: the mean is 90 / 99."""
    low, high = mean_interval([1.0] * 90 + [0.0] * 9, [0] * 90 + list(range(1, 10)))
    assert low < 0.2 and 90 / 99 <= high < 1  # and it is nearly one problem


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -3.0, 40.0])
def test_equal_values_are_not_certain(value):
    few, many = (bootstrap_interval([value] * count) for count in (10, 1000))
    for low, high in (few, many):
        assert low <= value <= high and low < high
    assert few[1] - few[0] > 5 * (many[1] - many[0])


def test_the_floor_of_all_right_is_wilsons_bound():
    for count in (2, 10, 366):
        assert bootstrap_interval([1.0] * count) == pytest.approx(wilson_interval(count, count))


def test_a_sound_bootstrap_stays_as_it_is():
    """Percentiles of the means of the same draws, by numpy alone."""
    values = np.random.default_rng(0).normal(2, 1, 60)
    rng = np.random.default_rng(0)
    means = np.concatenate([values[rng.integers(0, 60, (100, 60))].mean(1) for _ in range(20)])
    assert bootstrap_interval(values) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


def rows_of(reward, ids):
    parts = {"format_reward": 1.0, "answer_reward": reward, "reward": reward}
    return [{"id": k, "metrics": dict(parts), "lenient": True, "failure_category": "correct",
             "token_count": 3} for k in ids]


def test_the_summaries_know_problems_and_certainty():
    found = summarise(rows_of(1.0, IDS)).intervals["accuracy"]
    assert found == pytest.approx(wilson_interval(PROBLEMS, PROBLEMS))
    assert summarise_rates(rows_of(1.0, IDS))["accuracy"][1:] == found
    assert summarise_rates(rows_of(1.0, range(120)))["accuracy"][1:] == wilson_interval(120, 120)
    value, low, high = summarise_rates(rows_of(0.5, range(50)))["accuracy"]
    assert value == 0.5 and low < 0.5 < high


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_value_that_is_no_number_is_refused_by_name(bad):
    for statistic in (
        lambda: bootstrap_interval([0.0, bad, 1.0]),
        lambda: mean_interval([0.0, bad, 1.0], [1, 2, 3]),
        lambda: paired_test([True, bad], [False, False]),
        lambda: best_of_n([[0.0, bad, 2.0]], [[0.0, 9.0, 3.0]], 2),
        lambda: best_of_n([[0.0, 1.0, 2.0]], [[0.0, 9.0, bad]], 3),
        lambda: paired_bootstrap([1.0, bad], [0.0, 0.0], np.zeros((3, 2), dtype=int)),
        lambda: summarise([*rows_of(1.0, "ab"), *rows_of(bad, "c")]),
        lambda: summarise_rates([*rows_of(1.0, "ab"), *rows_of(bad, "c")]),
        lambda: mean_pass_at_k([*rows_of(1.0, "ab"), *rows_of(bad, "c")], 1),
    ):
        with pytest.raises(ValueError, match="inf|nan|None") as raised:
            statistic()
        assert "\n" not in str(raised.value)


def test_nothing_has_no_rate():
    for statistic in (lambda: mean_pass_at_k([], 1), lambda: wilson_interval(0, 0),
                      lambda: wilson_interval(3, 2), lambda: difference_of_rates(1, 1, 0)):
        with pytest.raises(ValueError):
            statistic()


def test_the_difference_of_two_certain_means_has_a_width():
    gap, low, high = difference_of_rates(1.0, 1.0, 50)
    wilson = wilson_interval(50, 50)
    assert gap == 0 and low == pytest.approx(wilson[0] - 1, abs=1e-4) and high == -low
    # Newcombe 1998, table II, row (h): 10 of 10 against 0 of 10 is 0.6075 to 1.
    assert difference_of_rates(1.0, 0.0, 10)[1:] == pytest.approx((0.6075, 1.0), abs=1e-4)


def test_weights_are_finite_numbers_above_0():
    for weights in ([0, 0, 0], [1, math.nan, 1], [1, -1, 1], [1, 2]):
        with pytest.raises(ValueError, match="weights") as caught:
            bootstrap_interval([1.0, 2.0, 3.0], weights=weights)
        assert "\n" not in str(caught.value)


def test_nothing_has_no_difference():
    with pytest.raises(ValueError, match="0 scores"):
        paired_bootstrap([], [], np.zeros((3, 0), int))


def test_the_best_of_many_samples():
    # With proxies 0 .. N - 1 the best of n has the expectation n (N + 1) / (n + 1) - 1.
    samples = [[float(k) for k in range(1200)]]
    found, _ = best_of_n(samples, samples, 600)
    assert found[0] == pytest.approx(600 * 1201 / 601 - 1, rel=1e-9)
