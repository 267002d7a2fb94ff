"""How often the 95 % intervals hold the truth: `python -m tests.benchmarks.interval_coverage`.

Problems with four samples each, 0/1. The chance of a problem is p for all ("alike"), drawn from a
beta distribution of mean p ("beta 5", "beta 1": ever more unequal), or 0 or 1 ("all or nothing":
the samples of a problem agree). Printed: the share of 1,000 data sets whose `mean_interval` holds
p, its mean width, and the same of the plain percentile bootstrap over problems.
"""

import sys

import numpy as np

from helpers.evaluation import mean_interval

KINDS = {"alike": None, "beta 5": 5.0, "beta 1": 1.0, "all or nothing": 0.0}
RATES = (0.5, 0.9, 0.97, 0.99)
ROUNDING = 1e-9


def draw(rng: np.random.Generator, p: float, problems: int, kind: str, samples: int = 4):
    """(values, ids) of one data set."""
    spread = KINDS[kind]
    if spread is None:
        chances = np.full(problems, p)
    elif spread == 0:
        chances = (rng.random(problems) < p).astype(float)
    else:
        chances = rng.beta(p * spread, (1 - p) * spread, problems)
    values = rng.random((problems, samples)) < chances[:, None]
    return values.astype(float).ravel().tolist(), np.repeat(np.arange(problems), samples).tolist()


def percentiles(rng, values, problems: int) -> tuple[float, float]:
    means = np.reshape(values, (problems, -1)).mean(axis=1)
    drawn = means[rng.integers(0, problems, (2_000, problems))].mean(axis=1)
    return tuple(np.quantile(drawn, (0.025, 0.975)))


def holds(interval, p: float) -> bool:
    return interval[0] - ROUNDING <= p <= interval[1] + ROUNDING


def main(trials: int = 1_000) -> None:
    rng = np.random.default_rng(0)
    print("problems  kind              p   holds  width   percentile bootstrap alone")
    for problems in (10, 30, 100):
        for kind in KINDS:
            for p in RATES:
                found, plain = [], []
                for _ in range(trials):
                    values, ids = draw(rng, p, problems, kind)
                    found.append(mean_interval(values, ids))
                    plain.append(percentiles(rng, values, problems))
                shares = [np.mean([holds(i, p) for i in some]) for some in (found, plain)]
                width = np.mean([high - low for low, high in found])
                print(f"{problems:8}  {kind:15} {p:4.2f}  {shares[0]:.3f}  {width:.3f}   "
                      f"{shares[1]:.3f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
