"""Metrics of early recognition: accuracy at each observation ratio, their mean (AUC), class by class.

The observation ratio is the share of a clip that has been seen: level n of N is the ratio n/N.

``probs`` is float ``[n, N, C]``: class probabilities at each of N levels (any monotone function of probability will
do); ``y`` is int ``[n]``, class indices. All results are in per cent; equal scores are ranked as in
``kdcache.metrics.topk``.
Paper: "Progressive knowledge distillation for early action recognition", Section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kdcache.metrics.topk import Classes, Scores, ranks

Curve = NDArray[np.float64]

TITLES = {"auc": "AUC"}  # as the paper's tables call a metric


def percent(levels: int) -> list[int]:
    """The observation ratio at each of N levels in per cent, rounded: 10, 20, … 100 for N = 10."""
    return [round(100 * n / levels) for n in range(1, levels + 1)]


def at_ratio(observed: int) -> str:
    """Name of the accuracy at an observation ratio in per cent: 20 → ``acc20``."""
    return f"acc{observed}"


def ratio_metrics(names: Iterable[str]) -> dict[str, int]:
    """Those metrics that are accuracies at an observation ratio, with the ratio in per cent: ``acc20`` → 20."""
    return {name: int(found[1]) for name in names if (found := re.fullmatch(r"acc(\d+)", name))}


def column_title(metric: str) -> str:
    """A metric as the column of a table: ``acc20`` → ``20``, ``auc`` → ``AUC``; others keep their name."""
    ratio = ratio_metrics([metric])
    return str(ratio[metric]) if ratio else TITLES.get(metric, metric)


def accuracy_curve(probs: Scores, y: Classes) -> Curve:
    """Top-1 accuracy at each observation ratio, float64 ``[N]`` in per cent; NaN without samples.

    Raises:
        ValueError: scores that are not finite or do not go with ``y``.
    """
    hits = _hits(probs, y)
    return 100 * hits.mean(axis=0) if len(y) else np.full(probs.shape[1], np.nan)


def mean_auc(curve: Sequence[float] | Curve) -> float:
    """Mean accuracy over the observation ratios: the paper's AUC (over ten ratios; see the column AUC of Table 1)."""
    return float(np.mean(curve))


def trapezoid_auc(curve: Sequence[float] | Curve) -> float:
    """Area under straight lines between the accuracies at ratios 1/N … 1, over the width 1 - 1/N of that range."""
    values = np.asarray(curve, np.float64)
    return float((values[1:] + values[:-1]).mean() / 2) if len(values) > 1 else float(values[0])


def measure_levels(probs: Scores, y: Classes) -> dict[str, float]:
    """``auc``, ``auc_trapezoid`` and the accuracy at each observation ratio, ``acc10`` … ``acc100`` for N = 10.

    Raises:
        ValueError: as for ``accuracy_curve``.
    """
    curve = accuracy_curve(probs, y)
    measured = {"auc": mean_auc(curve), "auc_trapezoid": trapezoid_auc(curve)}
    return measured | {at_ratio(p): float(a) for p, a in zip(percent(len(curve)), curve, strict=True)}


def per_class_accuracy(probs: Scores, y: Classes) -> Curve:
    """Accuracy on each class's samples at each observation ratio, float64 ``[C, N]`` in per cent.

    NaN for classes without samples.

    Raises:
        ValueError: as for ``accuracy_curve``.
    """
    hits = _hits(probs, y)
    table = np.full((probs.shape[2], probs.shape[1]), np.nan)
    for c in np.unique(y):
        table[c] = 100 * hits[y == c].mean(axis=0)
    return table


def per_class_gain(probs_a: Scores, probs_b: Scores, y: Classes) -> tuple[Curve, Curve]:
    """Difference in accuracy between ``probs_b`` and ``probs_a`` on each class of the same samples, in points.

    Returns:
        The gain averaged over the observation ratios, float64 ``[C]``, and at each of them, ``[C, N]``; NaN for classes
        without samples.

    Raises:
        ValueError: the two do not have one shape.
    """
    if probs_a.shape != probs_b.shape:
        raise ValueError(f"probabilities {probs_a.shape} and {probs_b.shape} are not of the same samples and classes")
    gain = per_class_accuracy(probs_b, y) - per_class_accuracy(probs_a, y)
    return gain.mean(axis=1), gain


def confusion(probs: Scores, y: Classes, level: int) -> NDArray[np.int64]:
    """Confusion matrix at one level: samples of each true class (row) by predicted class (column), int64 ``[C, C]``.

    ``level`` counts from 1 to N; -1 is the last.

    Raises:
        ValueError: no such level, or scores that are not finite or do not go with ``y``.
    """
    _check(probs, y)
    levels, classes = probs.shape[1:]
    if level != -1 and not 1 <= level <= levels:
        raise ValueError(f"there is no level {level}: choose 1 to {levels}, or -1 for the last")
    seen = probs[:, level - 1 if level > 0 else level]
    taken = classes - 1 - seen[:, ::-1].argmax(axis=1)  # of equal scores the higher index
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (y, taken), 1)
    return counts


def _hits(probs: Scores, y: Classes) -> NDArray[np.bool_]:
    """Whether each sample is classified correctly at each level, bool ``[n, N]``."""
    _check(probs, y)
    n, levels, classes = probs.shape
    before = ranks(probs.reshape(-1, classes), np.repeat(y, levels))
    return np.equal(before, 0).reshape(n, levels)


def _check(probs: Scores, y: Classes) -> None:
    if probs.ndim != 3 or y.shape != probs.shape[:1]:
        raise ValueError(f"probabilities {probs.shape} are not [n, N, C] for classes {y.shape}")
    if not np.isfinite(probs).all():
        raise ValueError("probabilities are not finite")
