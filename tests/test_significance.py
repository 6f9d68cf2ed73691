"""Effects over units against printed tables, closed forms, direct enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kdcache.metrics.significance import (
    compare,
    detectable_difference,
    half_widths,
    mean_std,
    power,
    sign_flip_p,
)

# Student (1908), the soporific drugs of Cushny & Peebles: extra hours of sleep of ten patients under two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP = [[b - a] for a, b in zip(FIRST, SECOND, strict=True)]


def test_students_own_example() -> None:
    found = compare(SLEEP)  # R: t.test(extra ~ group, sleep, paired = TRUE)
    assert (found.units, found.runs, found.higher, found.equal) == (10, 10, 9, 1)
    assert found.difference == pytest.approx(1.58)
    assert found.std_units == pytest.approx(1.229995, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-6), pytest.approx(2.4598858, abs=1e-6))
    assert found.p == found.p_adjusted == pytest.approx(0.002833, abs=1e-6)
    assert found.standardised == pytest.approx(1.58 / 1.229995, abs=1e-5)
    assert found.p_sign_flips == 4 / 1024  # nine of one sign and a zero: the two full flips, twice
    assert math.isnan(found.std_seeds)  # one seed a unit: nothing tells units and seeds apart
    assert math.isnan(found.std_between)


def test_several_comparisons_hold_at_once() -> None:
    one, five = compare(SLEEP), compare(SLEEP, comparisons=5)
    half = 3.2498 * 1.229995 / math.sqrt(10)  # printed t of 9 degrees of freedom at 0.01, two-sided
    assert five.high - five.difference == pytest.approx(half, rel=2e-5)
    assert five.difference - five.low == pytest.approx(half, rel=2e-5)
    assert five.p == one.p
    assert five.p_adjusted == pytest.approx(5 * one.p)
    assert five.detectable > one.detectable
    assert compare(SLEEP, comparisons=500).p_adjusted == 1


def test_seeds_are_averaged_before_units_are_compared() -> None:
    """Worked by hand: unit means 2, 4, 9; within variance (2 + 8 + 2) / 3; between 13 − 4 / 2."""
    found = compare([[1, 3], [2, 6], [8, 10]])
    assert (found.difference, found.units, found.runs, found.higher) == (5, 3, 6, 3)
    assert found.std_units**2 == pytest.approx(13)
    assert found.std_seeds**2 == pytest.approx(4)
    assert found.std_between**2 == pytest.approx(11)
    assert found.high - 5 == pytest.approx(4.30265 * math.sqrt(13 / 3), rel=1e-5)
    assert found.p_sign_flips == 2 / 8
    same = compare([[2], [4], [9]])  # repeats within a unit add no units
    assert (same.low, same.high, same.p) == (found.low, found.high, found.p)


def test_units_may_have_unequal_numbers_of_seeds() -> None:
    """Unit means 2 and 5; within variance (0.5 + 2) / (1 + 2); the share of seeds is its mean over 1/2 and 1/3."""
    found = compare([[1.5, 2.5], [4, 5, 6]])
    assert (found.difference, found.runs) == (3.5, 5)
    assert found.std_seeds**2 == pytest.approx(2.5 / 3)
    assert found.std_between**2 == pytest.approx(4.5 - 2.5 / 3 * (1 / 2 + 1 / 3) / 2)
    assert compare([[0, 4], [1, 3], [2.1, 2]]).std_between == 0  # seeds explain more than there is


def test_one_unit_says_nothing_about_others() -> None:
    found = compare([[1.0, 2.0, 3.0]])
    assert (found.difference, found.units, found.runs, found.std_seeds) == (2, 1, 3, 1)
    for name in ("low", "high", "p", "p_adjusted", "p_sign_flips", "detectable", "std_units", "std_between"):
        assert math.isnan(getattr(found, name)), name


def test_differences_that_do_not_vary_have_no_interval() -> None:
    shifted = compare([[0.4 - 0.1], [1.0 - 0.7], [0.6 - 0.3]])  # equal, but for rounding
    assert shifted.difference == pytest.approx(0.3)
    assert math.isnan(shifted.low)
    assert math.isnan(shifted.p)
    assert shifted.p_sign_flips == 2 / 8
    same = compare([[0.0], [0.0]])
    assert (same.difference, same.higher, same.equal, same.p_sign_flips) == (0, 0, 2, 1)
    assert math.isnan(same.detectable)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (([],), "at least one seed"),
        (([[]],), "at least one seed"),
        (([[1.0], [math.nan]],), "finite"),
        (([[1.0]], 0), "0 comparisons"),
        (([[1.0]], 1, 1.0), "level 1.0"),
    ],
)
def test_what_cannot_be_compared(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        compare(*call)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flips_by_enumeration(n: int) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, n)
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=n)]
    assert sign_flip_p(d) == sum(s >= abs(sum(d)) - 1e-9 for s in sums) / 2**n


def test_equal_shares_are_counted_in_spite_of_rounding() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3]) == 2 / 8
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert sign_flip_p([0.1] * 5) == 2 / 32
    assert sign_flip_p([1.0] * 16) == 2 / 2**16


def test_many_units_are_sampled_near_the_exact_share_and_always_the_same() -> None:
    d = [1.0] * 15 + [-1.0] * 5  # binomial: 2 · P(≥ 15 of 20)
    exact = 2 * sum(math.comb(20, k) for k in range(15, 21)) / 2**20
    assert sign_flip_p(d) == pytest.approx(exact, abs=0.004)
    assert sign_flip_p(d) == sign_flip_p(d)
    assert 0 < sign_flip_p([1.0] * 30) < 1e-4


def test_intervals_cover_as_often_as_promised_and_seeds_do_not() -> None:
    """Five draws of three seeds, draws three times as different as seeds: 95 % over units, far fewer over runs."""
    rng = np.random.default_rng(0)
    runs = 1.0 + rng.normal(0, 3, (2000, 5, 1)) + rng.normal(0, 1, (2000, 5, 3))
    means = runs.mean(axis=2)
    half = half_widths(means.T)
    assert np.mean(np.abs(means.mean(axis=1) - 1) <= half) == pytest.approx(0.95, abs=0.015)
    pooled = half_widths(runs.reshape(2000, 15).T)
    assert np.mean(np.abs(means.mean(axis=1) - 1) <= pooled) < 0.8
    some = [compare(list(unit)) for unit in runs[:100]]
    np.testing.assert_allclose([e.high - e.difference for e in some], half[:100])
    assert np.mean([e.std_between**2 for e in some]) == pytest.approx(9, rel=0.15)
    assert np.mean([e.std_seeds**2 for e in some]) == pytest.approx(1, rel=0.1)


def test_false_alarms_of_a_whole_table_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(1)
    tables = rng.normal(size=(1500, 6, 5))  # six rows, five units, no effects
    half = half_widths(np.moveaxis(tables, 2, 0), 1 - 0.05 / 6)
    missed = np.abs(tables.mean(axis=2)) > half
    assert np.mean(missed.any(axis=1)) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("units", "comparisons"), [(2, 1), (3, 4), (5, 6), (45, 1)])
def test_what_is_detectable_is_found_in_four_of_five_simulations(units: int, comparisons: int) -> None:
    alpha = 0.05 / comparisons
    least = detectable_difference(2.0, units, alpha)
    studies = np.random.default_rng(units).normal(least, 2.0, (20_000, units))
    half = half_widths(studies.T, 1 - alpha)
    assert np.mean(np.abs(studies.mean(axis=1)) > half) == pytest.approx(0.8, abs=0.015)
    assert power(0.0, 2.0, units, alpha) == pytest.approx(alpha, rel=0.02)


def test_power_against_a_printed_table() -> None:
    """Cohen (1988) by G*Power: a paired t-test of 34 pairs finds d = 0.5 at 0.05, two-sided, with power 0.8078."""
    assert power(0.5, 1.0, 34) == pytest.approx(0.8078, abs=5e-4)
    assert detectable_difference(1.0, 34) < 0.5 < detectable_difference(1.0, 33)


def test_half_widths_leave_units_without_a_value_out() -> None:
    values = np.array([[1.0, 1.0, np.nan], [3.0, np.nan, np.nan], [5.0, 3.0, 2.0]])
    found = half_widths(values)
    assert found[0] == pytest.approx(4.30265 * 2 / math.sqrt(3), rel=1e-5)
    assert found[1] == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-5)
    assert math.isnan(found[2])


def test_mean_and_standard_deviation() -> None:
    assert mean_std([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == (5.0, pytest.approx(math.sqrt(32 / 7)))
    assert math.isnan(mean_std([3.0])[1])
