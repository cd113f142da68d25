"""Two ways to answer the same questions: a paired interval of their difference, and McNemar's test. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Paired:
    """The second against the first, over the same questions."""

    questions: int
    difference: float
    """Mean reward of the second less that of the first."""
    low: float
    high: float
    """Its 95% interval: percentiles of a bootstrap over questions, the pairs kept together."""
    probability: float
    """That the second is better: share of the bootstrap's resamples in which its mean is the higher one."""
    gained: int
    """Questions that only the second has right."""
    lost: int
    """Questions that only the first has right."""
    p: float
    """Of McNemar's exact test (two-sided binomial over `gained` and `lost`): how likely a split as uneven
    is if both are as good."""


def paired(
    first: Sequence[float], second: Sequence[float], threshold: float, samples: int, seed: int
) -> Paired:
    """Compare rewards (Q,) of the same questions in the same order.

    Args:
        threshold: reward from which an answer is right.
        samples: resamples of the questions behind the interval.

    Raises:
        ValueError: no questions, or not the same number.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"expected rewards of the same questions, found {len(first)} and {len(second)} of them"
        )
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    differences, random = other - one, np.random.default_rng(seed)
    count = len(differences)
    means = np.array([differences[random.integers(count, size=count)].mean() for _ in range(samples)])
    low, high = np.percentile(means, (2.5, 97.5))
    gained = int(((one < threshold) & (other >= threshold)).sum())
    lost = int(((one >= threshold) & (other < threshold)).sum())
    return Paired(
        questions=count,
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        probability=float((means > 0).mean()),
        gained=gained,
        lost=lost,
        p=mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """P value of McNemar's exact test; 1 if nothing differs."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**count)


def p_value(p: float) -> str:
    """For people."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
