"""Stacks of consecutive flow fields: what a flow network sees of the motion around one frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def flow_stacks(fields: int, centres: NDArray[np.integer], pairs: int) -> NDArray[np.int32]:
    """Which flow fields make up the stack around each frame: ``pairs`` in a row, centred, clamped at the clip's ends.

    Args:
        fields: number of flow fields of the clip; field t leads from frame t to t + 1.
        centres: int [n], the sampled frames.
        pairs: fields in a stack: 3 (6 channels, PMRD) or 5 (10 channels, Ego-RNN).

    Returns:
        int32 [n, pairs]. For 3: the fields t − 1, t, t + 1 [reconstructed: the papers say "around the frame"].
        ``flow[stacks]`` of a flow [fields, H, W, 2] is [n, pairs, H, W, 2]; move ``pairs`` before the 2 to stack.
    """
    offsets = np.arange(pairs) - pairs // 2
    return np.clip(np.asarray(centres)[:, None] + offsets, 0, fields - 1).astype(np.int32)


def stacked(flow: NDArray[np.uint8], stacks: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Gather stacks: 8-bit flow [fields, H, W, 2] and indices [n, pairs] → [n, H, W, 2 × pairs], x0 y0 x1 y1 …"""
    gathered = np.moveaxis(flow[stacks], 1, 3)
    return gathered.reshape(*gathered.shape[:3], -1)
