"""What a comparison of two rows says beyond its own runs: intervals, tests and power over units.

A *unit* is one choice of what a reported number should not depend on: a draw, on one split of the clips. Within a unit,
trainings are repeated with several seeds. Seeds of one unit share its clips and labels, so they say nothing about
others: differences are averaged over seeds first, and what is left varies over units alone. For a balanced mixed model
with random units this gives its exact interval and test: Student's t with one degree of freedom fewer than units.

Several comparisons of one table are made simultaneous by Bonferroni: each of m has the level 1 − (1 − level) / m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
SIGN_FLIPS = 2**16 - 1  # of 16 units all flips are counted; of more units so many are drawn
_ROUNDING = 1e-9  # differences that vary by less than this share of the largest do not vary
_QUADRATURE = 4096  # points of the integral over the estimated spread


@dataclass(frozen=True)
class Effect:
    """How a row differs from another, row minus reference, over units.

    Whatever needs several units is NaN where there is one, or where the differences do not vary.
    """

    difference: float
    """Mean over units of each unit's mean over seeds."""
    low: float
    """Of the interval at ``level``, simultaneous over ``comparisons``."""
    high: float
    detectable: float
    """The smallest true difference that a study of as many units finds with 80 % power at that level, if the units
    vary as these do."""
    standardised: float
    """``difference`` divided by ``std_units``."""
    p: float
    """Two-sided, of the t-test over units."""
    p_adjusted: float
    """The same times ``comparisons``, at most 1."""
    p_sign_flips: float
    """Two-sided, of the sign-flip test over units, not adjusted; of n units it is never below 2 / 2^n."""
    higher: int
    """Units in which the row is higher."""
    equal: int
    units: int
    runs: int
    """Differences in all units together."""
    std_units: float
    """Standard deviation of the units' means."""
    std_between: float
    """Of it what units themselves cause, the share of a finite number of seeds taken off; NaN without repeated seeds,
    which alone tell the two apart."""
    std_seeds: float
    """Standard deviation of differences within units, pooled; NaN without repeated seeds."""
    level: float
    comparisons: int


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation with n - 1, which is NaN for a single value."""
    x = np.asarray(values, np.float64)
    return float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else math.nan


def compare(differences: Sequence[ArrayLike], comparisons: int = 1, level: float = LEVEL) -> Effect:
    """The effect of a row, from its differences to a reference.

    Args:
        differences: ``[units, seeds]``, or one array of seeds a unit, which may differ in length.
        comparisons: how many of a table shall hold at once.
        level: of the interval.

    Raises:
        ValueError: no unit, a unit without differences, differences that are not finite, or a level or number of
            comparisons that makes no sense.
    """
    if comparisons < 1 or not 0 < level < 1:
        raise ValueError(f"{comparisons} comparisons at level {level}: give at least one, and a level between 0 and 1")
    found = [np.asarray(unit, np.float64) for unit in differences]
    if not found or any(unit.ndim != 1 or not len(unit) for unit in found):
        raise ValueError("differences are one array a unit, each of at least one seed")
    if not all(np.isfinite(unit).all() for unit in found):
        raise ValueError("a comparison needs finite differences")
    means, counts = np.array([unit.mean() for unit in found]), np.array([len(unit) for unit in found])
    difference, spread = mean_std(means.tolist())
    freedom = int((counts - 1).sum())
    within = math.nan
    if freedom:
        within = math.sqrt(sum(float(((unit - unit.mean()) ** 2).sum()) for unit in found) / freedom)
    unexplained = spread**2 - within**2 * float((1 / counts).mean())
    between = unexplained if math.isnan(unexplained) else math.sqrt(max(0.0, unexplained))
    nothing = np.abs(means) <= _ROUNDING * np.abs(np.concatenate(found)).max()
    low = high = detectable = standardised = p = flips = math.nan
    varies = len(means) > 1 and spread > _ROUNDING * float(np.abs(means).max())
    if varies:
        half = float(half_widths(means, 1 - (1 - level) / comparisons))
        low, high = difference - half, difference + half
        detectable = detectable_difference(spread, len(means), (1 - level) / comparisons)
        standardised = difference / spread
        p = float(stats.ttest_1samp(means, 0.0).pvalue)
    if len(means) > 1:
        flips = sign_flip_p(means)
    return Effect(
        difference=difference,
        low=low,
        high=high,
        detectable=detectable,
        standardised=standardised,
        p=p,
        p_adjusted=min(1.0, p * comparisons) if varies else math.nan,
        p_sign_flips=flips,
        higher=int(((means > 0) & ~nothing).sum()),
        equal=int(nothing.sum()),
        units=len(means),
        runs=int(counts.sum()),
        std_units=spread,
        std_between=between,
        std_seeds=within,
        level=level,
        comparisons=comparisons,
    )


def half_widths(values: NDArray[np.float64], level: float = LEVEL) -> NDArray[np.float64]:
    """Half the width of Student's interval of a mean.

    Args:
        values: float64 ``[units, …]``; NaN stands for a unit that has no value.
        level: of the interval.

    Returns:
        float64 ``[…]``, NaN where fewer than two units have a value.
    """
    there = ~np.isnan(values)
    counts = there.sum(axis=0)
    enough = counts > 1
    several = np.where(enough, counts, 2)
    mean = np.where(there, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    variance = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0) / (several - 1)
    half = stats.t.isf((1 - level) / 2, several - 1) * np.sqrt(variance / several)
    return np.asarray(np.where(enough, half, np.nan), np.float64)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p of the sign-flip test of ``[units]`` differences: without an effect either sign is as likely.

    All 2^n flips are counted for up to 16 units; for more, 65,535 are drawn with a fixed seed, and the one observed is
    counted among them, so that p is never 0 (Phipson & Smyth 2010).

    Raises:
        ValueError: fewer than two units.
    """
    found = stats.permutation_test(
        (np.asarray(differences, np.float64),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=SIGN_FLIPS + 1,
        batch=8192,
        random_state=np.random.default_rng(0),
    )
    return float(found.pvalue)


def power(difference: float, std: float, units: int, alpha: float = 1 - LEVEL) -> float:
    """How often a two-sided t-test over ``units`` finds a true difference whose units vary by ``std``.

    The upper and lower tail of the noncentral t, integrated over the estimated spread (scipy's own noncentral t has no
    value at few degrees of freedom).
    """
    shift, limit = difference * math.sqrt(units) / std, stats.t.isf(alpha / 2, units - 1) * _ratios(units - 1)
    return float((stats.norm.cdf(shift - limit) + stats.norm.cdf(-shift - limit)).mean())


@lru_cache
def _ratios(freedom: int) -> NDArray[np.float64]:
    """Estimated by true standard deviation, float64 ``[_QUADRATURE]``: equally likely values."""
    middles = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE
    return np.asarray(np.sqrt(stats.chi2.ppf(middles, freedom) / freedom), np.float64)


def detectable_difference(std: float, units: int, alpha: float = 1 - LEVEL, wanted: float = POWER) -> float:
    """The smallest true difference that a two-sided t-test over ``units`` finds with a power of ``wanted``.

    Args:
        std: standard deviation of the units' differences, above 0.
        units: two or more.
        alpha: two-sided level of the test.
        wanted: power.
    """
    upper = std
    while power(upper, std, units, alpha) < wanted:
        upper *= 2
    return float(optimize.brentq(lambda d: power(d, std, units, alpha) - wanted, 0.0, upper))
