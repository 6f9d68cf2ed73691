"""Which samples keep their labels when only a part of a training set is labelled."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcache.methods.contract import UNLABELLED


def keep_fraction(y: Tensor, fraction: float, seed: int) -> Tensor:
    """Hide labels so that every class keeps the same share of them, at least one each.

    ``y`` is int64 ``[n]`` with ``UNLABELLED`` where there is none; so is the result. The draw depends on ``seed``
    alone, and a larger fraction keeps all that a smaller one does.
    """
    if fraction >= 1:
        return y
    kept = torch.full_like(y, UNLABELLED)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    for c in sorted(set(y[y != UNLABELLED].tolist())):
        members = order[y[order] == c]
        chosen = members[: max(1, round(fraction * len(members)))]
        kept[chosen] = c
    return kept
