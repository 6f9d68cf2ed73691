"""Improved dense trajectories: points tracked through dense flow, freed of camera motion.

H. Wang and C. Schmid, "Action recognition with improved trajectories", ICCV 2013; descriptors after
H. Wang et al., "Dense trajectories and motion boundary descriptors for action recognition", IJCV 2013.
Follows what the original program does, to the rounding; :func:`to_columns` gives its 436 columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError
from kdcache.motion.descriptors import SIZE, split, to_columns
from kdcache.motion.frames import Clip, frames_of
from kdcache.motion.tracker import Finished, IDTParams, Tracker

if TYPE_CHECKING:
    import pandas as pd

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

__all__ = ["IDTParams", "Tracker", "draw_trajectories", "tabulate", "to_columns", "trajectories"]


def trajectories(
    clip: Clip,
    params: IDTParams | None = None,
    mask: NDArray[Any] | None = None,
    descriptors: bool = False,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    fps: float | None = None,
    short_side: int | None = None,
) -> pd.DataFrame:
    """Improved dense trajectories of a clip, in the original program's order.

    ``clip`` is ``uint8 [T, H, W, 3]`` (or grey ``[T, H, W]``), or the path of a video, or of a folder or tar of
    frames, of which ``start_s``, ``stop_s``, ``fps`` and ``short_side`` say what is read (see
    :mod:`kdcache.motion.frames`); frames are numbered from the first one read. ``mask [H, W]`` or ``[T, H, W]`` is
    true where people may be (the paper's human detector): no vote on camera motion is taken there. One row a
    trajectory:

    ``end_frame`` (its last frame), ``mean_x, mean_y, var_x, var_y`` (mean and, so named by the original,
    standard deviation of its L+1 positions, px), ``length`` (px), ``scale`` (1, √2, 2 …), ``x_pos, y_pos, t_pos``
    (position in the clip, 0 … 0.999), ``points`` (``float32 [L, 2]``: x, y in frames end_frame−L+1 … end_frame),
    ``start`` (``[2]``: x, y in frame end_frame−L, where it was sampled), ``displacements`` (``[L, 2]``, camera motion
    removed, divided by their total length), and with ``descriptors`` ``hog [96]``, ``hof [108]``, ``mbhx [96]``,
    ``mbhy [96]``. Clips too short for one track, or without motion, give no rows.

    Raises :class:`ClipError` for an empty clip, wrong types or sizes, and with ``descriptors`` for frames smaller
    than their 32-px window.
    """
    rgb = frames_of(clip, start_s=start_s, stop_s=stop_s, fps=fps, short_side=short_side)
    _check_clip(rgb, mask)
    tracker = Tracker(rgb.shape[1], rgb.shape[2], params, descriptors)
    finished: list[Finished] = []
    for t in range(len(rgb)):
        finished += tracker.push(rgb[t], None if mask is None else (mask[t] if mask.ndim == 3 else mask))
    return tabulate(finished, rgb.shape[:3], tracker.params.length, descriptors)


def tabulate(finished: list[Finished], clip: tuple[int, ...], length: int, descriptors: bool) -> pd.DataFrame:
    """The table of :func:`trajectories` from what a :class:`Tracker` gave over a clip of T, H, W."""
    import pandas as pd

    frames, height, width = clip[:3]
    width_of = SIZE if descriptors else 0
    empty = Finished(
        0, 1.0, np.zeros((0, length + 1, 2), np.float32), np.zeros((0, length, 2), np.float32),
        np.zeros((0, 5), np.float32), np.zeros((0, width_of), np.float32),
    )  # fmt: skip
    parts = finished or [empty]
    points = np.concatenate([f.points for f in parts])
    moves = np.concatenate([f.moves for f in parts])
    stats = np.concatenate([f.stats for f in parts])
    end = np.concatenate([np.full(len(f.points), f.frame, np.int32) for f in parts])
    scale = np.concatenate([np.full(len(f.points), f.scale, np.float32) for f in parts])
    columns: dict[str, Any] = {"end_frame": end}
    columns |= {name: stats[:, i] for i, name in enumerate(("mean_x", "mean_y", "var_x", "var_y", "length"))}
    columns["scale"] = scale
    columns["x_pos"] = np.clip(stats[:, 0] / width, 0, 0.999).astype(np.float32)
    columns["y_pos"] = np.clip(stats[:, 1] / height, 0, 0.999).astype(np.float32)
    columns["t_pos"] = np.clip((end - length / 2) / frames, 0, 0.999).astype(np.float32)
    columns["start"] = list(points[:, 0])
    columns["points"] = list(points[:, 1:])
    columns["displacements"] = list(moves)
    if descriptors:
        columns |= split(np.concatenate([f.descriptors for f in parts]))
    return pd.DataFrame(columns)


def draw_trajectories(rgb: U8, table: pd.DataFrame, frame: int) -> U8:
    """A copy of ``rgb uint8 [H, W, 3]`` with the trajectories that pass through ``frame``: green tails, red heads.

    ``table`` is what :func:`trajectories` returned; a tail is drawn from the track's start up to ``frame``.
    """
    out = np.ascontiguousarray(rgb).copy()
    sixteenth = 16.0  # fixed-point pixels of cv2's drawing
    for start, points, end in zip(table["start"], table["points"], table["end_frame"], strict=True):
        path = np.concatenate([start[None], points])
        now = frame - int(end) + len(points)
        if not 0 <= now <= len(points):
            continue
        fixed = np.round(path[: now + 1] * sixteenth).astype(np.int32)
        for i in range(now):
            green = (0, int(255 * (i + 2) / (now + 1)), 0)
            cv2.line(out, fixed[i].tolist(), fixed[i + 1].tolist(), green, 1, cv2.LINE_AA, 4)
        cv2.circle(out, fixed[now].tolist(), int(1.5 * sixteenth), (255, 0, 0), -1, cv2.LINE_AA, 4)
    return out


def _check_clip(rgb: U8, mask: NDArray[Any] | None) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim not in (3, 4) or (rgb.ndim == 4 and rgb.shape[3] != 3):
        raise ClipError(
            f"A clip must be uint8 [T, H, W, 3] RGB or [T, H, W] grey, but is {rgb.dtype} {list(rgb.shape)};"
            " convert it first."
        )
    if 0 in rgb.shape:
        raise ClipError(f"The clip has no pixels (shape {list(rgb.shape)}); give at least one frame.")
    if mask is not None and mask.shape not in (rgb.shape[:3], rgb.shape[1:3]):
        raise ClipError(f"The mask is {list(mask.shape)}, but must be [T, H, W] or [H, W] of {list(rgb.shape[:3])}.")
