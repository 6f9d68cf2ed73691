"""The numbers of the EPIC-KITCHENS anticipation challenges, as their evaluation code computes them, in plain numpy.

EPIC-KITCHENS-100: ``evaluate_anticipation_json_ek100.py`` of epic-kitchens/C3-Action-Anticipation. EPIC-KITCHENS-55:
``epic_kitchens.metrics`` of epic-kitchens/epic-kitchens-55-lib. Where code and papers differ, this follows the code:

- a mean over classes runs over those that occur among the samples that it is taken of, never over all classes;
- an action is in the tail if its verb or its noun is; tail and unseen samples are taken out first, then classes
  are averaged;
- precision and recall of EPIC-55 are means over the many-shot classes that occur among the samples, of top-1 answers;
  a class that is never answered has precision 0 (RULSTM's own script calls an action many-shot if its verb or its
  noun is; the challenge has a list of actions);
- of equal scores the higher class number comes first. (The official code sorts without stability, so ties in its
  numbers depend on numpy; with answers in the order of their classes and a stable sort it is this.)

All results are in per cent, NaN where there is no sample to take them of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.metrics.topk import Classes, Scores, ranks

TASKS = ("verb", "noun", "action")
PART_OF_ACTION = 1000
"""An action's class number is this times its verb, plus its noun, as in the official code."""
K = 5
NEVER = np.iinfo(np.int64).max
"""Rank of a class that is not scored."""


def action_ids(verb: Classes, noun: Classes) -> NDArray[np.int64]:
    """Class numbers of actions, int64, of verb and noun classes of the same shape."""
    return np.asarray(verb, np.int64) * PART_OF_ACTION + np.asarray(noun, np.int64)


@dataclass(frozen=True)
class EpicScores:
    """What was answered for n segments."""

    verb: Scores
    """``[n, verbs]``; column c is verb class c."""
    noun: Scores
    """``[n, nouns]``"""
    action: Scores
    """``[n, A]``, of the actions that ``action_id`` names; others rank behind all of these."""
    action_id: Classes
    """``[n, A]``, see ``action_ids``; each at most once a row."""

    def __post_init__(self) -> None:
        if self.action.shape != self.action_id.shape or not len(self.verb) == len(self.noun) == len(self.action):
            raise ValueError(
                f"scores {self.verb.shape}, {self.noun.shape}, {self.action.shape} and {self.action_id.shape} "
                "do not go together"
            )


@dataclass(frozen=True)
class EpicTruth:
    """The annotation of the same n segments."""

    verb: Classes
    """``[n]``"""
    noun: Classes
    """``[n]``"""

    @property
    def action(self) -> NDArray[np.int64]:
        """Class numbers ``[n]``."""
        return action_ids(self.verb, self.noun)


def listed_ranks(scores: Scores, ids: Classes, y: Classes) -> NDArray[np.int64]:
    """How many classes are ranked before the true one, int64 ``[n]``, where only the classes ``ids`` are scored.

    Args:
        scores: ``[n, A]``.
        ids: class numbers ``[n, A]``, each at most once a row.
        y: true class numbers ``[n]``; one that is not scored is among no number of best ones: its rank is ``NEVER``.

    Raises:
        ValueError: scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    mine = ids == y[:, None]
    own = np.where(mine, scores, -np.inf).max(axis=1, initial=-np.inf)[:, None]
    before = ((scores > own) | ((scores == own) & (ids > y[:, None]))).sum(axis=1)
    return np.where(mine.any(axis=1), before, NEVER)


def task_ranks(scores: EpicScores, truth: EpicTruth) -> dict[str, NDArray[np.int64]]:
    """For verb, noun and action the rank of the true class, int64 ``[n]``, 0 the best."""
    return {
        "verb": ranks(scores.verb, truth.verb),
        "noun": ranks(scores.noun, truth.noun),
        "action": listed_ranks(scores.action, scores.action_id, truth.action),
    }


def mean_recall(rank: NDArray[np.int64], y: Classes, k: int = K) -> float:
    """Mean over the classes in ``y`` of the share of their samples with a rank below ``k``; both are ``[n]``."""
    return 100 * float(np.mean([(rank[y == c] < k).mean() for c in np.unique(y)])) if len(y) else float("nan")


def measure_epic100(
    scores: EpicScores,
    truth: EpicTruth,
    unseen: NDArray[np.bool_],
    tail_verbs: Collection[int],
    tail_nouns: Collection[int],
) -> dict[str, float]:
    """The nine numbers of EPIC-KITCHENS-100: mean top-5 recall, ``<overall|unseen|tail>_<verb|noun|action>_mt5r``.

    Args:
        scores: of n segments.
        truth: of the same.
        unseen: whether a segment is of a participant without training videos, bool ``[n]``.
        tail_verbs: the verb classes of the tail.
        tail_nouns: the noun classes of the tail.

    Raises:
        ValueError: scores that are not finite or do not go with ``truth``.
    """
    tail = {
        "verb": np.isin(truth.verb, sorted(tail_verbs)),
        "noun": np.isin(truth.noun, sorted(tail_nouns)),
    }
    tail["action"] = tail["verb"] | tail["noun"]
    everywhere = np.ones(len(truth.verb), bool)
    found = task_ranks(scores, truth)
    return {
        f"{part}_{task}_mt5r": mean_recall(found[task][of], getattr(truth, task)[of])
        for part in ("overall", "unseen", "tail")
        for task in TASKS
        for of in [{"overall": everywhere, "unseen": unseen, "tail": tail[task]}[part]]
    }


def measure_epic55(scores: EpicScores, truth: EpicTruth, many_shot: Mapping[str, Collection[int]]) -> dict[str, float]:
    """The twelve numbers of EPIC-KITCHENS-55: ``<verb|noun|action>_<top1|top5|precision|recall>``.

    Args:
        scores: of n segments.
        truth: of the same.
        many_shot: for each task the classes that precision and recall are averaged over; actions as ``action_ids``.

    Raises:
        ValueError: scores that are not finite or do not go with ``truth``.
    """
    answers = {
        "verb": _best(scores.verb, np.broadcast_to(np.arange(scores.verb.shape[1]), scores.verb.shape)),
        "noun": _best(scores.noun, np.broadcast_to(np.arange(scores.noun.shape[1]), scores.noun.shape)),
        "action": _best(scores.action, scores.action_id),
    }
    measured = {}
    for task, rank in task_ranks(scores, truth).items():
        y = getattr(truth, task)
        for k in (1, K):
            measured[f"{task}_top{k}"] = 100 * float((rank < k).mean()) if len(y) else float("nan")
        precision, recall = precision_recall(answers[task], y, many_shot[task])
        measured |= {f"{task}_precision": precision, f"{task}_recall": recall}
    return measured


def precision_recall(answer: Classes, y: Classes, among: Collection[int]) -> tuple[float, float]:
    """Means of precision and recall over those classes of ``among`` that occur in ``y``; ``answer``, ``y`` are ``[n]``.

    A class that is never answered has precision 0. NaN where none of the classes occurs.
    """
    classes = np.intersect1d(np.array(sorted(among), np.int64), y)
    if not len(classes):
        return float("nan"), float("nan")
    right = np.array([((answer == c) & (y == c)).sum() for c in classes])
    answered = np.array([(answer == c).sum() for c in classes])
    there = np.array([(y == c).sum() for c in classes])
    return 100 * float((right / np.maximum(answered, 1)).mean()), 100 * float((right / there).mean())


def best_actions(scores: Scores, ids: Classes, k: int) -> tuple[Scores, NDArray[np.int64]]:
    """The ``k`` best actions of each segment in the order of their class numbers, scores and numbers ``[n, k]``.

    Args:
        scores: ``[n, A]``, A ≥ k.
        ids: class numbers ``[A]``, ascending.
        k: how many; of equal scores the higher class numbers are taken.
    """
    chosen = np.sort(np.argsort(scores, axis=1, kind="stable")[:, -k:], axis=1)
    return np.take_along_axis(scores, chosen, axis=1), np.asarray(ids, np.int64)[chosen]


def _best(scores: Scores, ids: Classes) -> NDArray[np.int64]:
    """The class of the best score of each row, the highest of equals; ``[n]``."""
    best = scores.max(axis=1, keepdims=True)
    return np.asarray(np.where(scores == best, ids, -1).max(axis=1), np.int64)


def best_products(verb: Scores, noun: Scores, k: int, rows: int = 256) -> tuple[Scores, NDArray[np.int64]]:
    """The ``k`` likeliest actions where verb and noun are independent, as ``best_actions`` returns them.

    Args:
        verb: probabilities ``[n, verbs]``.
        noun: ``[n, nouns]``; every pair is taken for an action, as in the official code.
        k: how many.
        rows: of how many segments all products are in memory at once.
    """
    ids = action_ids(*np.meshgrid(np.arange(verb.shape[1]), np.arange(noun.shape[1]), indexing="ij")).ravel()
    parts = [
        best_actions((verb[i : i + rows, :, None] * noun[i : i + rows, None]).reshape(-1, len(ids)), ids, k)
        for i in range(0, len(verb), rows)
    ]
    if not parts:
        return np.empty((0, k), verb.dtype), np.empty((0, k), np.int64)
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([chosen for _, chosen in parts])
