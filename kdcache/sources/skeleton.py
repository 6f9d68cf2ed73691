"""Skeleton files → arrays: MSR Action3D text, JHMDB joints (npz) and NTU RGB+D ``.skeleton`` text.

    >>> read_skeleton("a01_s01_e01_skeleton3D.txt").joints.shape     # float32 [frames, bodies × joints, 3]
    (54, 20, 3)

Joints are as in the file: uncentred, in the sensor's units (metres for Kinect). A joint or body that was not seen is
at (0, 0, 0), as in the published files; ``kdcache.backbones.skeleton_image`` says what happens to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import SourceError, unknown

Joints = NDArray[np.float32]  # [T, bodies × joints, 3]
Choose = Callable[[int], tuple[Joints, NDArray[np.int32]]]  # frames seen so far → chosen bodies and their frames

MSR_JOINTS, MSR_SPINE, MSR_FPS = 20, 3, 15.0  # joint 4 (1-based) is the spine, between the hips and the shoulders
JHMDB_JOINTS, JHMDB_BELLY, JHMDB_FPS = 15, 1, 30.0


@dataclass(frozen=True)
class Skeleton:
    """One sequence of joints.

    Attributes:
        joints: float32 [T, bodies × per_body, 3]; zeros where nothing was seen.
        per_body: joints of one body.
        centre: index of the joint in the middle of a body, whose first position becomes the origin of images.
        frames: int32 [T], the file's frame behind each row; frames in which NTU files hold no body have no row.
        total: frames in the file.
        fps: frame rate of the recording [general knowledge, in no file].
        kind: ``msraction3d``, ``jhmdb`` or ``ntu``.
        choose: for files with spare bodies, which are chosen when only the first so many frames were seen.
    """

    joints: Joints
    per_body: int
    centre: int
    frames: NDArray[np.int32]
    total: int
    fps: float
    kind: str
    choose: Choose | None = None

    @property
    def bodies(self) -> int:
        """1 or 2."""
        return int(self.joints.shape[1]) // self.per_body

    @property
    def seen(self) -> NDArray[np.bool_]:
        """bool [T]: frames in which any joint is away from (0, 0, 0)."""
        return np.asarray(self.joints.any(axis=(1, 2)))

    def observed(self, stop: int) -> Skeleton:
        """The sequence as the file's first ``stop`` frames show it; NTU's actors are chosen from those alone."""
        if self.choose is not None:
            joints, frames = self.choose(stop)
        else:
            rows = int(np.searchsorted(self.frames, stop))
            joints, frames = self.joints[:rows], self.frames[:rows]
        return replace(self, joints=joints, frames=frames)


def read_skeleton(path: str | os.PathLike[str]) -> Skeleton:
    """Read a file that holds one clip: ``.txt`` as MSR Action3D, ``.skeleton`` as NTU RGB+D.

    Raises ``SourceError``, naming the file and where it is wrong: missing, empty, damaged, or without any joint.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".skeleton":
        from kdcache.sources.ntu import read_ntu

        return read_ntu(path)
    if suffix == ".txt":
        return read_msraction3d(path)
    raise SourceError(
        f"{path}: not a skeleton file of one clip; give MSR Action3D text (.txt) or NTU RGB+D text (.skeleton), "
        f"and read JHMDB joints (.npz, many clips a file) with read_jhmdb."
    )


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a skeleton file; ``SourceError`` when it is missing, empty or not text."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file (byte {error.start}); copy it again.") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    if not text.strip():
        raise SourceError(f"{path}: the file is empty; copy it again or take it out of the manifest.")
    return text


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
    if len(values) % MSR_JOINTS:
        raise SourceError(
            f"{path}: {len(values)} lines are no whole number of frames of {MSR_JOINTS} joints: the file is cut off; "
            f"copy it again."
        )
    joints = np.ascontiguousarray(values[:, :3].reshape(-1, MSR_JOINTS, 3))
    return whole(path, joints, MSR_JOINTS, MSR_SPINE, MSR_FPS, "msraction3d")


def read_jhmdb(
    path: str | os.PathLike[str], part: Literal["train", "test"] = "train"
) -> tuple[list[Skeleton], list[str]]:
    """JHMDB's 2-D joints as distributed for one split: every clip of ``part`` and its label.

    The file holds ``{part}_pose`` float32 [ΣT, 15, 2], ``{part}_length`` and ``{part}_label``; z is padded with 0.

    Raises:
        SourceError: missing, damaged, arrays that do not fit together, not finite, or a clip of zeros only.
        OptionError: a part other than train and test.
    """
    if part not in ("train", "test"):
        raise unknown("part", part, ("train", "test"))
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            pose, length, label = (file[f"{part}_{name}"] for name in ("pose", "length", "label"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}); check the path.") from error
    except Exception as error:  # a damaged archive fails in zipfile, zlib or numpy, each in its own way
        raise SourceError(f"{path}: damaged or not JHMDB joints ({error}); copy the file again.") from error
    if pose.ndim != 3 or pose.shape[1:] != (JHMDB_JOINTS, 2) or len(length) != len(label) or length.sum() != len(pose):
        raise SourceError(
            f"{path}: {part}_pose {list(pose.shape)}, {part}_length (sum {length.sum()}) and {part}_label "
            f"({len(label)}) do not fit together; expected [ΣT, {JHMDB_JOINTS}, 2]; copy the file again."
        )
    padded = np.pad(pose.astype(np.float32), ((0, 0), (0, 0), (0, 1)))
    clips = np.split(padded, np.cumsum(length)[:-1])
    skeletons = [
        whole(f"{path} ({part} clip {i})", clip, JHMDB_JOINTS, JHMDB_BELLY, JHMDB_FPS, "jhmdb")
        for i, clip in enumerate(clips)
    ]
    return skeletons, [str(name) for name in label]


def whole(path: str | os.PathLike[str], joints: Joints, per_body: int, centre: int, fps: float, kind: str) -> Skeleton:
    """A skeleton with a row for every frame; ``SourceError`` when joints are not finite or nothing was ever seen."""
    if not np.isfinite(joints).all():
        frame = int(np.flatnonzero(~np.isfinite(joints).all(axis=(1, 2)))[0])
        raise SourceError(f"{path}: frame {frame} holds a NaN or infinite joint; copy the file again.")
    if not joints.any():
        raise SourceError(f"{path}: all joints are zero in all {len(joints)} frames; take it out of the manifest.")
    return Skeleton(joints, per_body, centre, np.arange(len(joints), dtype=np.int32), len(joints), fps, kind)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
