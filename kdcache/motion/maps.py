"""Motion maps: which pixels move, from camera-stabilised trajectories, as the imprint paper's auxiliary task needs.

"Imprinting the Motion" takes its maps as given ("pixels are labeled as moving or not", made with improved dense
trajectories); the recipe from trajectories to pixels is [reconstructed], each choice an option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError
from kdcache.motion.frames import Clip, frames_of
from kdcache.motion.idt import IDTParams, trajectories

if TYPE_CHECKING:
    import pandas as pd

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def motion_maps(
    clip: Clip,
    params: IDTParams | None = None,
    mask: NDArray[Any] | None = None,
    least_radius: float | None = None,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    fps: float | None = None,
    short_side: int | None = None,
) -> U8:
    """Maps ``uint8 [T, H, W]`` of a clip ``uint8 [T, H, W, 3]`` (or grey), or of a path: 255 where it moves by itself,
    else 0.

    The trajectories of :func:`~kdcache.motion.idt.trajectories` (arguments as there), painted
    by :func:`paint`. A clip without motion, or of fewer than 16 frames, gives all 0.
    """
    params = params or IDTParams()
    rgb = frames_of(clip, start_s=start_s, stop_s=stop_s, fps=fps, short_side=short_side)
    table = trajectories(rgb, params, mask)
    return paint(table, rgb.shape[0], rgb.shape[1], rgb.shape[2], params.step, least_radius)


def paint(
    table: pd.DataFrame, frames: int, height: int, width: int, step: int = 5, least_radius: float | None = None
) -> U8:
    """Maps ``uint8 [frames, height, width]``, 0 or 255, from a table of trajectories.

    Each trajectory marks a disc around its position in each frame that it passes through, of radius half the
    sampling ``step`` × its scale, the ground that it stands for, but at least ``least_radius`` px (``None``: 5 px at
    a shorter side of 256, in proportion otherwise). Frames before the first marked one repeat it, as tracks can be
    found only later; unmarked frames after it stay 0. [reconstructed]
    """
    if least_radius is None:
        least_radius = 5.0 * min(height, width) / 256.0
    maps = np.zeros((frames, height, width), np.uint8)
    for end, scale, start, points in zip(
        table["end_frame"], table["scale"], table["start"], table["points"], strict=True
    ):
        radius = round(max(step / 2 * float(scale), least_radius))
        path = np.rint(np.concatenate([start[None], points])).astype(int)
        for t, (x, y) in enumerate(path.tolist(), start=int(end) - len(points)):
            cv2.circle(maps[t], (x, y), radius, 255, -1)
    marked = np.flatnonzero(maps.any(axis=(1, 2)))
    if len(marked):
        maps[: marked[0]] = maps[marked[0]]
    return maps


def pooled_maps(maps: U8, grid: int = 7, tau: float = 0.2) -> tuple[F32, U8]:
    """The share of motion in each cell and whether it is more than ``tau``: the regression and classification labels.

    ``maps uint8 [T, H, W]`` of 0 and 255 → shares ``float32 [T, grid, grid]`` in [0, 1], the mean over the cell
    (pixels on its edge count in part), and labels ``uint8`` 0 or 1. The paper's τ is 0.2 on a 7 × 7 grid.
    Raises :class:`ClipError` for wrong types and :class:`OptionError` for a grid finer than the maps or τ outside
    [0, 1).
    """
    if maps.dtype != np.uint8 or maps.ndim != 3:
        raise ClipError(f"Motion maps must be uint8 [T, H, W], but are {maps.dtype} {list(maps.shape)}; convert them.")
    if not 1 <= grid <= min(maps.shape[1:]):
        raise OptionError(f"A grid of {grid} is finer than maps of {maps.shape[2]}×{maps.shape[1]} px; take less.")
    if not 0 <= tau < 1:
        raise OptionError(f"The motion threshold tau must lie in [0, 1), but is {tau}.")
    rows, columns = _cells(maps.shape[1], grid), _cells(maps.shape[2], grid)
    shares = np.einsum("ih,thw,jw->tij", rows, maps.astype(np.float64) / 255.0, columns, optimize=True)
    shares = np.clip(shares, 0.0, 1.0).astype(np.float32)
    return shares, (shares > np.float32(tau)).astype(np.uint8)


def _cells(size: int, grid: int) -> NDArray[np.float64]:
    """Weights ``[grid, size]`` that average a line of ``size`` pixels over each of ``grid`` equal cells."""
    edges = np.linspace(0, size, grid + 1)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.asarray(np.clip(overlap, 0.0, 1.0) * (grid / size), np.float64)
