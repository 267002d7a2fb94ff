"""Two methods on the same questions, and what a published table of rates can tell by itself."""

import math
from collections.abc import Sequence

import numpy as np


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], draws: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The mean difference of two methods' scores on the same N questions, with its interval.

    Each line of draws (R, N) holds N question numbers, drawn with replacement; both methods are
    judged on the same draw, so that what makes a question hard for both cancels (Efron and
    Tibshirani 1993, chapter 13: the percentile interval of the mean of the differences).
    It knows only what was drawn: equal differences have no width here, as in the example.
    `helpers.evaluation.bootstrap_interval` of the differences counts in what may not have been.

    Returns (difference, low, high). Raises ValueError for unequal numbers of scores, and for one
    that is no finite number.

    Example:
        >>> draws = np.random.default_rng(0).integers(0, 3, (1000, 3))
        >>> paired_bootstrap([1.0, 0.5, 1.5], [0.5, 0.0, 1.0], draws)
        (0.5, 0.5, 0.5)
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or not len(first):
        raise ValueError(f"{len(first)} scores and {len(second)} do not make pairs.")
    gaps, tail = first - second, (1 - confidence) / 2
    if not np.isfinite(gaps).all():
        place = int(np.flatnonzero(~np.isfinite(gaps))[0])
        raise ValueError(f"Question {place} has the scores {first[place]} and {second[place]}, "
                         "which do not compare.")
    low, high = np.quantile(gaps[np.asarray(draws)].mean(axis=1), (tail, 1 - tail))
    return float(gaps.mean()), float(low), float(high)


def totals_that_fit(rates: Sequence[float], most: int, digits: int = 4) -> list[int]:
    """The numbers of questions n up to `most` of which all rates can be shares k / n, rounded.

    A table that rounds to four digits gives its n away where it has enough rates: below 10,000 only
    some of the four-digit numbers are shares of a given n.

    Example:
        >>> totals_that_fit([0.3333, 0.1667], 20)
        [6, 12, 18]
    """

    def fits(rate: float, n: int) -> bool:
        below = math.floor(rate * n)
        return any(
            abs(round(k / n, digits) - rate) < 10 ** -(digits + 2) for k in (below, below + 1)
        )

    return [n for n in range(1, most + 1) if all(fits(rate, n) for rate in rates)]


def difference_of_rates(first: float, second: float, n: int) -> tuple[float, float, float]:
    """(difference, low, high) at 95 %, from two published means of n scores between 0 and 1.

    The normal interval of two independent means: a table does not say which questions each method
    answered, so the pairs are lost and the interval is wide. A score between 0 and 1 of mean m has
    a variance of m (1 - m) at most, which SubEM reaches and F1 does not. Near 0 or 1, where fewer
    than five questions are right or wrong, that variance is too small, and 0 at the ends: there
    each mean gets Wilson's interval (Newcombe 1998, method 10).

    Raises ValueError for means outside 0 to 1, and for no scores.

    Example:
        >>> [round(bound, 3) for bound in difference_of_rates(0.5, 0.4, 100)]
        [0.1, -0.037, 0.237]
    """
    if not (0 <= first <= 1 and 0 <= second <= 1 and n >= 1):
        raise ValueError(f"Means {first} and {second} of {n} scores: each must be from 0 to 1, and "
                         "there must be a score.")
    gap = first - second
    if min(first, 1 - first, second, 1 - second) * n >= 5:
        error = math.sqrt((first * (1 - first) + second * (1 - second)) / n)
        return gap, gap - 1.96 * error, gap + 1.96 * error
    (low, high), (other_low, other_high) = _wilson(first, n), _wilson(second, n)
    below = math.hypot(first - low, other_high - second)
    above = math.hypot(high - first, second - other_low)
    return gap, gap - below, gap + above


def _wilson(mean: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a mean that need not be a count out of n."""
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return centre - half, centre + half
