"""Paired tests against printed tables, closed forms and direct enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kdcache.metrics.significance import mean_std, paired, permutation_p, student_p

# Student (1908), the soporific drugs of Cushny & Peebles: extra hours of sleep of ten patients under two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_own_example() -> None:
    result = paired(FIRST, SECOND)
    assert (result.pairs, result.wins, result.ties) == (10, 9, 1)
    assert result.mean == pytest.approx(1.58)
    assert result.std == pytest.approx(1.229995, abs=1e-6)
    assert result.t == pytest.approx(4.0621, abs=1e-4)  # R: t.test(extra ~ group, sleep, paired = TRUE)
    assert result.p_t == pytest.approx(0.002833, abs=1e-6)
    assert result.p_permutation == 4 / 1024  # nine of one sign and a zero: the two full flips, twice


@pytest.mark.parametrize(
    ("freedom", "t", "p"),  # two-sided critical values of printed tables
    [(1, 12.7062, 0.05), (4, 2.7764, 0.05), (9, 2.2622, 0.05), (9, 3.2498, 0.01), (29, 2.0452, 0.05), (9, 0.7027, 0.5)],
)
def test_student_p_against_printed_critical_values(freedom: int, t: float, p: float) -> None:
    assert student_p(t, freedom) == pytest.approx(p, rel=2e-4)
    assert student_p(-t, freedom) == student_p(t, freedom)


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.0, 4.0, 60.0])
def test_student_p_against_closed_forms(t: float) -> None:
    assert student_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-10, abs=1e-13)
    assert student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9, abs=1e-13)
    assert student_p(t, 10**6) == pytest.approx(math.erfc(t / math.sqrt(2)), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_permutations_by_enumeration(n: int) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, n)
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=n)]
    assert permutation_p(d) == sum(s >= abs(sum(d)) - 1e-9 for s in sums) / 2**n


def test_equal_shares_are_counted_in_spite_of_rounding() -> None:
    assert permutation_p(np.array([0.1, 0.2, 0.3])) == 2 / 8
    assert permutation_p(np.array([0.1, 0.2, -0.3])) == 1.0
    assert permutation_p(np.full(5, 0.1)) == 2 / 32


def test_many_pairs_are_sampled_near_the_exact_share_and_always_the_same() -> None:
    d = np.array([1.0] * 15 + [-1.0] * 5)  # binomial: 2 · P(≥ 15 of 20)
    exact = 2 * sum(math.comb(20, k) for k in range(15, 21)) / 2**20
    assert permutation_p(d) == pytest.approx(exact, abs=0.003)
    assert permutation_p(d) == permutation_p(d)
    assert permutation_p(np.ones(30)) == 1 / 100_001


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    tests = [paired(a, b) for a, b in rng.normal(size=(2000, 2, 8))]
    assert 0.035 < np.mean([t.p_t < 0.05 for t in tests]) < 0.065
    assert 0.03 < np.mean([t.p_permutation < 0.05 for t in tests]) < 0.06


def test_cases_without_a_test() -> None:
    one = paired([1.0], [3.0])
    assert (one.mean, one.wins, one.p_permutation) == (2.0, 1, 1.0)
    assert math.isnan(one.std)
    assert math.isnan(one.p_t)
    shifted = paired([0.1, 0.7, 0.3], [0.4, 1.0, 0.6])  # equal differences, but for rounding
    assert math.isnan(shifted.t)
    assert shifted.p_permutation == 2 / 8
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert (same.mean, same.ties, same.p_permutation) == (0.0, 2, 1.0)
    assert math.isnan(same.p_t)
    for first, second in (([1.0], [1.0, 2.0]), ([], []), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match=r"pairs of numbers|finite"):
            paired(first, second)


def test_mean_and_standard_deviation() -> None:
    assert mean_std([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == (5.0, pytest.approx(math.sqrt(32 / 7)))
    assert math.isnan(mean_std([3.0])[1])
