"""Metrics of class probabilities, for the target and for the verb and noun of an action; as text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.engine.scoring import Probabilities
from kdcache.errors import OptionError
from kdcache.methods.contract import UNLABELLED, Data, MetricsFn
from kdcache.metrics import topk as metrics
from kdcache.metrics.anticipation import in_words
from kdcache.text import aligned


def parts_of(data: Data, target: str) -> dict[str, NDArray[np.int64]]:
    """For verb and noun, where actions have exactly one each: the part's class index of every action, int64 ``[C]``."""
    found: dict[str, NDArray[np.int64]] = {}
    for part in ("verb", "noun"):
        if target != "label" or part not in data.classes:
            continue
        whole = np.concatenate([s.labels[target].numpy() for s in data.splits.values()])
        of = np.concatenate([s.labels[part].numpy() for s in data.splits.values()])
        known = (whole != UNLABELLED) & (of != UNLABELLED)
        table = np.unique(np.stack([whole[known], of[known]]), axis=1)
        if np.array_equal(table[0], np.arange(len(data.classes[target]))):
            found[part] = table[1]
    return found


def baselines(data: Data, target: str, y: Tensor) -> dict[str, float]:
    """What a split's accuracy is to be compared with: its number of ``clips``, ``chance`` (100 / number of classes),
    and ``majority``, the accuracy of always naming the most frequent training class, in per cent.

    ``y`` are its class indices ``[n]``, all known.
    """
    train = data.splits["train"].labels[target]
    frequent = int(torch.bincount(train[train != UNLABELLED]).argmax())
    chance, majority = 100 / len(data.classes[target]), 100 * float((y == frequent).double().mean())
    return {"clips": len(y), "chance": chance, "majority": majority}


def measure_all(
    probs: Probabilities,
    labels: Mapping[str, Tensor],
    data: Data,
    target: str,
    many_shot: int | None = None,
    measure: MetricsFn | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics for the target and for the verb and noun of an action; ``labels`` are class indices ``[n]`` by target.

    Verb and noun probabilities are sums over actions. ``many_shot`` adds recalls over classes with more training
    samples than that. ``measure`` is for probabilities ``[n, N, C]``, of which there are no such recalls.

    Raises:
        OptionError: ``many_shot`` with ``measure``.
    """
    if measure is not None and many_shot is not None:
        raise OptionError("many_shot is for runs that answer once a clip; leave it out for this one.")
    scores = {target: probs}
    for part, of in parts_of(data, target).items():
        scores[part] = metrics.marginalise(probs, of, len(data.classes[part]))
    measured = {}
    for name, values in scores.items():
        y = labels[name].numpy()
        known = y != UNLABELLED
        many = None
        if many_shot is not None:
            train = data.splits["train"].labels[name].numpy()
            classes, counts = np.unique(train[train != UNLABELLED], return_counts=True)
            many = set(classes[counts > many_shot].tolist())
        if known.any():
            scored = values[known], y[known]
            measured[name] = metrics.measure(*scored, many) if measure is None else dict(measure(*scored))
    return measured


def score_table(scores: list[tuple[tuple[str, str, str], dict[str, float]]]) -> list[str]:
    """Weights, split and target with their metrics in columns; metrics at several times are curves in lines below."""
    names = list(dict.fromkeys(name for _, values in scores for name in values if "@" not in name))
    lines = []
    if names:
        rows = [("weights", "split", "target", *names)]
        rows += [(*of, *(f"{v[name]:.1f}" if name in v else "" for name in names)) for of, v in scores]
        lines += aligned(rows, numbers_from=3)
    for (which, split, target), values in scores:
        if curves := {name: value for name, value in values.items() if "@" in name}:
            lines.append(f"{which}, {split} {target}: {in_words(curves)}")
    return lines
