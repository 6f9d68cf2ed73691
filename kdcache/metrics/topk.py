"""Metrics on class scores, in per cent, in plain numpy: top-k accuracy, class-mean recall.

``scores`` is float ``[n, C]`` (any monotone function of probability), ``y`` int ``[n]``, class indices. Equal scores
are ranked with the higher class index first, which is what ``argsort()[::-1]`` with a stable sort gives in the
EPIC-KITCHENS tools.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Classes = NDArray[np.integer]


def ranks(scores: Scores, y: Classes) -> NDArray[np.int64]:
    """How many classes are ranked before the true one, int64 ``[n]``; ``ValueError`` for scores that are not finite."""
    if scores.ndim != 2 or y.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and classes {y.shape} do not go together")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    own = np.take_along_axis(scores, y[:, None], axis=1)
    higher_index = np.arange(scores.shape[1])[None] > y[:, None]
    before: NDArray[np.int64] = ((scores > own) | ((scores == own) & higher_index)).sum(axis=1)
    return before


def top_k(scores: Scores, y: Classes, k: int = 1) -> float:
    """Share of samples whose class is among the k best, in per cent; NaN without samples.

    Raises:
        ValueError: scores that are not finite or do not go with ``y``.
    """
    return 100 * float((ranks(scores, y) < k).mean()) if len(y) else float("nan")


def class_mean_recall(scores: Scores, y: Classes, k: int = 1, only: Collection[int] | None = None) -> float:
    """Mean over the classes that occur in ``y`` of the share of their samples with the class among the k best.

    In per cent. ``only`` restricts the mean to some classes (EPIC-KITCHENS-55: those with many training samples). NaN
    when none of them occurs.

    Raises:
        ValueError: scores that are not finite or do not go with ``y``.
    """
    hit = ranks(scores, y) < k
    classes = [c for c in np.unique(y) if only is None or int(c) in only]
    return 100 * float(np.mean([hit[y == c].mean() for c in classes])) if classes else float("nan")


def marginalise(probabilities: Scores, part_of: Classes, parts: int) -> Scores:
    """Probabilities of verbs (or nouns) as sums over the actions that have them, ``[..., parts]`` of the same dtype.

    ``probabilities`` is float ``[..., C]`` over actions, ``part_of`` int ``[C]``: the verb of each action.
    """
    sums = np.zeros((*probabilities.shape[:-1], parts), probabilities.dtype)
    np.add.at(np.moveaxis(sums, -1, 0), part_of, np.moveaxis(probabilities, -1, 0))
    return sums


def measure(scores: Scores, y: Classes, many_shot: Collection[int] | None = None) -> dict[str, float]:
    """``top1``, ``top5``, ``class_mean_recall`` and ``mean_top5_recall`` in per cent.

    With ``many_shot``, a set of classes, also ``many_shot_recall`` and ``many_shot_top5_recall`` over these alone.

    Raises:
        ValueError: scores that are not finite or do not go with ``y``.
    """
    measured = {
        "top1": top_k(scores, y, 1),
        "top5": top_k(scores, y, 5),
        "class_mean_recall": class_mean_recall(scores, y, 1),
        "mean_top5_recall": class_mean_recall(scores, y, 5),
    }
    if many_shot is not None:
        measured["many_shot_recall"] = class_mean_recall(scores, y, 1, many_shot)
        measured["many_shot_top5_recall"] = class_mean_recall(scores, y, 5, many_shot)
    return measured
