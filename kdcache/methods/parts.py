"""Levels of progress made of a sequence of vectors, for features that were not cached level by level."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kdcache.levels import level_spans


@functools.cache
def means_of_parts(parts: int) -> Callable[[Tensor], Tensor]:
    """Vectors ``[T, d]`` → means over N equal parts of the sequence, ``[N, d]``.

    Part n holds vectors ⌊(n−1)T/N⌋ … ⌊nT/N⌋ − 1 (n from 1), as frames of a clip are cut into levels. A part without a
    vector, because T < N, repeats the last one before it; before there is any, the first.

    Args:
        parts: N.
    """

    def means(x: Tensor) -> Tensor:
        return torch.stack([x[start:stop].mean(0) for start, stop in level_spans(len(x), parts).tolist()])

    return means
