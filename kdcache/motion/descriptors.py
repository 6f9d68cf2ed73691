"""HOG, HOF and MBH along trajectories, in the layout of the original improved-trajectories program.

A 32-px patch follows the track; 2 × 2 cells in space (x outer) and 3 in time; 8 directions (HOF has a ninth
bin for no motion). H. Wang et al., IJCV 2013, section 3.3; constants as in the original program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.motion import _histogram_kernels as kernels

if TYPE_CHECKING:
    import pandas as pd

F32 = NDArray[np.float32]

TIME_CELLS = 3
QUIET = 0.4  # flow no longer than this falls in HOF's ninth bin, px
BLOCKS = {"hog": 8, "hof": 9, "mbhx": 8, "mbhy": 8}  # bins of each, in the order of the original's columns
SIZE = sum(TIME_CELLS * 4 * bins for bins in BLOCKS.values())  # 396
COLUMNS = 40 + SIZE  # 436

_HEAD = ("end_frame", "mean_x", "mean_y", "var_x", "var_y", "length", "scale", "x_pos", "y_pos", "t_pos")


def add_descriptors(
    gray: NDArray[np.uint8], flow: F32, points: F32, age: NDArray[np.int32], live: NDArray[np.bool_], out: F32,
    length: int,
) -> None:  # fmt: skip
    """Add one frame's histograms to the descriptors ``out [n, 396]`` of the tracks of one scale.

    ``gray uint8 [h, w]`` is the frame that the tracks leave, ``flow [2, h, w]`` its flow without camera motion.
    """
    offset = 0
    where = kernels.places(points, age, live, *gray.shape)
    level, (x, y) = gray.astype(np.float32), flow
    fields = {"hog": (level, level, True), "hof": (x, y, False), "mbhx": (x, x, True), "mbhy": (y, y, True)}
    for name, bins in BLOCKS.items():
        quiet = QUIET if bins == 9 else -1.0
        kernels.describe(*fields[name], quiet, where, age, length // TIME_CELLS, offset, out)
        offset += TIME_CELLS * 4 * bins


def split(descriptors: F32) -> dict[str, list[F32]]:
    """Rows ``[n, 396]`` as columns ``hog [96]``, ``hof [108]``, ``mbhx [96]``, ``mbhy [96]``."""
    ends = np.cumsum([TIME_CELLS * 4 * bins for bins in BLOCKS.values()])
    parts = np.split(descriptors, ends[:-1], axis=1)
    return {name: list(part) for name, part in zip(BLOCKS, parts, strict=True)}


def to_columns(table: pd.DataFrame, descriptors: bool = True) -> F32:
    """A table of trajectories with descriptors as ``float32 [n, 436]``, the original program's columns.

    End frame, mean x, mean y, deviation x, deviation y, length, scale, x, y, t position; 30 of normalised warped
    displacement (x, y alternating); HOG 96, HOF 108, MBHx 96, MBHy 96. Without ``descriptors`` only the first 40.
    Raises :class:`OptionError` when the table was made without descriptors that are asked for.
    """
    blocks = tuple(BLOCKS) if descriptors else ()
    missing = [name for name in (*_HEAD, "displacements", *blocks) if name not in table.columns]
    if missing:
        raise OptionError(f"The table of trajectories lacks {', '.join(missing)}; make it with descriptors=True.")
    if not len(table):
        return np.zeros((0, COLUMNS if descriptors else COLUMNS - SIZE), np.float32)
    head = table[list(_HEAD)].to_numpy(np.float32)
    moves = np.stack(table["displacements"].to_list()).reshape(len(table), -1)
    return np.concatenate([head, moves, *(np.stack(table[name].to_list()) for name in blocks)], axis=1)
