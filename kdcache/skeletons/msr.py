"""MSR Action3D's skeleton text: 20 joints of one body, 15 frames a second."""

from __future__ import annotations

import os

import numpy as np

from kdcache.errors import SourceError
from kdcache.skeletons.base import Skeleton, read_text

JOINTS, SPINE, FPS = 20, 3, 15.0  # joint 4 (1-based) is the spine, between the hips and the shoulders


def read_msraction3d(path: str | os.PathLike[str]) -> Skeleton:
    """MSR Action3D: 20 lines a frame, each ``x y z confidence`` (metres, and a confidence that is dropped).

    Lost frames are written as zeros in these files; they stay, so that time is right.

    Raises ``SourceError``: missing, empty, not four numbers a line, cut off in a frame, not finite, or zeros only.
    """
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    try:
        values = np.array(lines, np.float32)
        if values.shape[1:] != (4,):
            raise ValueError
    except ValueError:
        wrong = next(i for i, line in enumerate(lines, 1) if len(line) != 4 or not all(map(_number, line)))
        raise SourceError(
            f"{path}: line {wrong} does not hold four numbers (x y z confidence); copy the file again."
        ) from None
    if len(values) % JOINTS:
        raise SourceError(
            f"{path}: {len(values)} lines are no whole number of frames of {JOINTS} joints: the file is cut off; "
            f"copy it again."
        )
    joints = np.ascontiguousarray(values[:, :3].reshape(-1, JOINTS, 3))
    frames = np.arange(len(joints), dtype=np.int32)
    skeleton = Skeleton(joints, JOINTS, SPINE, frames, len(joints), FPS, "msraction3d")
    if (problem := skeleton.problem()) is not None:
        raise SourceError(f"{path}: {problem}")
    return skeleton


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
