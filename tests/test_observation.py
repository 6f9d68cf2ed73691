"""Accuracy over observed fractions against direct loops and the paper's own printed numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache.metrics.early import (
    accuracy_curve,
    confusion,
    mean_auc,
    measure_levels,
    per_class_accuracy,
    per_class_gain,
    percent,
    trapezoid_auc,
)
from kdcache.metrics.topk import top_k

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 5, 60)
PROBS = RNG.dirichlet(np.ones(5), (60, 10)).round(1)  # rounding makes ties
OTHER = RNG.dirichlet(np.ones(5), (60, 10)).round(1)


def guess(scores: np.ndarray) -> int:
    """The class that a stable ascending argsort, read from its end, puts first."""
    return int(np.argsort(scores, kind="stable")[::-1][0])


def test_accuracy_at_each_level_by_counting() -> None:
    curve = [100 * sum(guess(PROBS[i, n]) == Y[i] for i in range(60)) / 60 for n in range(10)]
    assert accuracy_curve(PROBS, Y) == pytest.approx(curve)
    assert [top_k(PROBS[:, n], Y) for n in range(10)] == pytest.approx(curve)
    measured = measure_levels(PROBS, Y)
    assert list(measured) == ["auc", "auc_trapezoid", *(f"acc{p}" for p in range(10, 101, 10))]
    assert [measured[f"acc{10 * n}"] for n in range(1, 11)] == pytest.approx(curve)
    assert measured["auc"] == pytest.approx(sum(curve) / 10)
    ratios = np.arange(1, 11) / 10
    area = sum((ratios[n + 1] - ratios[n]) * (curve[n] + curve[n + 1]) / 2 for n in range(9))
    assert measured["auc_trapezoid"] == pytest.approx(area / 0.9)


def test_ties_are_in_the_data_and_go_to_the_higher_class() -> None:
    top = PROBS.max(axis=-1, keepdims=True)
    assert ((top == PROBS).sum(axis=-1) > 1).any()
    tied = np.full((2, 1, 3), 1 / 3)
    assert measure_levels(tied, np.array([2, 2]))["auc"] == 100
    assert measure_levels(tied, np.array([0, 1]))["auc"] == 0


def test_both_areas_of_known_curves() -> None:
    assert mean_auc([0, 100]) == trapezoid_auc([0, 100]) == 50
    assert mean_auc([0, 0, 90]) == 30
    assert trapezoid_auc([0, 0, 90]) == 22.5
    assert trapezoid_auc([70]) == mean_auc([70]) == 70


def test_the_papers_auc_is_the_mean_over_all_ten_ratios() -> None:
    """NTU, ours: 62.8 is printed, but the five accuracies printed beside it average 66.6.

    With the odd ratios interpolated and nothing known at 0 %, the mean of ten comes within a point.
    """
    printed = [24.6, 57.7, 76.9, 85.7, 88.1]
    ten = np.interp(np.arange(1, 11) / 10, [0, 0.2, 0.4, 0.6, 0.8, 1], [0, *printed])
    assert mean_auc(printed) == pytest.approx(66.6, abs=0.01)
    assert abs(mean_auc(ten) - 62.8) < 1


def test_observed_percentages() -> None:
    assert percent(10) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert percent(3) == [33, 67, 100]
    assert list(measure_levels(PROBS[:, :3], Y))[2:] == ["acc33", "acc67", "acc100"]


def test_per_class_accuracy_and_gain_by_counting() -> None:
    gain, by_level = per_class_gain(PROBS, OTHER, Y)
    for c in range(5):
        mine = [i for i in range(60) if Y[i] == c]
        for n in range(10):
            a = 100 * sum(guess(PROBS[i, n]) == c for i in mine) / len(mine)
            b = 100 * sum(guess(OTHER[i, n]) == c for i in mine) / len(mine)
            assert by_level[c, n] == pytest.approx(b - a)
        assert gain[c] == pytest.approx(by_level[c].mean())
    counts = np.bincount(Y, minlength=5)
    weighted = (per_class_accuracy(PROBS, Y) * counts[:, None]).sum(axis=0) / 60
    assert weighted == pytest.approx(accuracy_curve(PROBS, Y))


def test_classes_without_samples_have_no_gain() -> None:
    y = np.where(Y == 3, 0, Y)
    gain, by_level = per_class_gain(PROBS, OTHER, y)
    assert np.isnan(gain[3])
    assert np.isnan(by_level[3]).all()
    assert np.isfinite(np.delete(gain, 3)).all()


@pytest.mark.parametrize("level", [1, 4, 10, -1])
def test_confusion_by_counting(level: int) -> None:
    n = 9 if level == -1 else level - 1
    counts = np.zeros((5, 5), int)
    for i in range(60):
        counts[Y[i], guess(PROBS[i, n])] += 1
    table = confusion(PROBS, Y, level)
    assert (table == counts).all()
    assert 100 * np.trace(table) / 60 == pytest.approx(accuracy_curve(PROBS, Y)[n])


def test_wrong_inputs_are_refused() -> None:
    for level in (0, 11, -2):
        with pytest.raises(ValueError, match="choose 1 to 10"):
            confusion(PROBS, Y, level)
    with pytest.raises(ValueError, match="not finite"):
        measure_levels(np.where(PROBS > 0.5, np.nan, PROBS), Y)
    with pytest.raises(ValueError, match=r"are not \[n, N, C\]"):
        measure_levels(PROBS[:, 0], Y)
    with pytest.raises(ValueError, match="not of the same samples"):
        per_class_gain(PROBS, OTHER[:, :5], Y)


def test_no_samples_measure_nothing() -> None:
    assert all(np.isnan(v) for v in measure_levels(PROBS[:0], Y[:0]).values())
