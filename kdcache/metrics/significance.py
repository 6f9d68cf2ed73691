"""Whether one row of a comparison is better than another: paired tests over the seeds (or splits) that both ran.

Both are two-sided. The sign-flip permutation test assumes only that, without an effect, a difference is as likely to
have either sign; the t-test also that differences are normal. Few seeds cannot show much: five pairs never give a
permutation p below 2/32 = 0.0625, however clear they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = 12  # pairs up to which all sign flips are enumerated
SAMPLES = 100_000  # sign flips drawn for more


@dataclass(frozen=True)
class Paired:
    """How a row compares with another over the pairs of runs that both have."""

    pairs: int
    mean: float
    """Mean difference, second minus first."""
    std: float
    """Of the differences, with n - 1; NaN for one pair."""
    wins: int
    """Pairs in which the second is higher."""
    ties: int
    t: float
    """Student's t; NaN where the differences do not vary."""
    p_t: float
    """Of the paired t-test; NaN where there is no t."""
    p_permutation: float
    """Of the sign-flip permutation test, exact for up to 12 pairs."""


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation with n - 1, which is NaN for a single value."""
    x = np.asarray(values, np.float64)
    return float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else math.nan


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two rows value by value.

    Args:
        first: one number for each seed.
        second: as many, in the same order of seeds.

    Raises:
        ValueError: not as many, none at all, or numbers that are not finite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"{a.shape} and {b.shape} are not pairs of numbers")
    d = b - a
    if not np.isfinite(d).all():
        raise ValueError("a paired test needs finite numbers")
    mean, std = mean_std(d.tolist())
    varies = len(d) > 1 and std > 1e-9 * float(np.abs(d).max())  # more than by rounding
    t = mean / (std / math.sqrt(len(d))) if varies else math.nan
    p_t = student_p(t, len(d) - 1) if math.isfinite(t) else math.nan
    return Paired(len(d), mean, std, int((d > 0).sum()), int((d == 0).sum()), t, p_t, permutation_p(d))


def permutation_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the sign-flip test: the share of sign flips whose mean is at least as far from 0.

    ``differences`` is float64 ``[n]``.

    All 2^n flips are counted for n ≤ 12; for more, 100,000 are drawn with a fixed seed, and the one observed is
    counted among them, so that p is never 0 (Phipson & Smyth 2010).
    """
    n = len(differences)
    reached = abs(float(differences.sum())) - 1e-9 * float(np.abs(differences).sum())
    if n <= EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((2 * bits - 1) @ differences) >= reached).mean())
    signs = np.random.default_rng(0).integers(0, 2, (SAMPLES, n), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ differences) >= reached).sum()) / (1 + SAMPLES))


def student_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t: I_x(ν/2, 1/2) with x = ν / (ν + t²)."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction of the mirrored function converges faster
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction
