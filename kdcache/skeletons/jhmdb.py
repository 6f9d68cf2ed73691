"""JHMDB's 2-D joints as distributed for one split: an ``.npz`` of many clips, laid end to end as one source."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import SourceError
from kdcache.skeletons import npz
from kdcache.skeletons.base import Skeleton

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

ARRAYS = ("pose", "length", "label")
JOINTS, BELLY, FPS = 15, 1, 30.0


@dataclass(frozen=True)
class JhmdbClip:
    """One clip of the file: the ``number``-th of ``part``, frames ``start`` to before ``stop`` of the source."""

    part: Part
    number: int
    label: str
    start: int
    stop: int


def is_jhmdb(names: Collection[str]) -> bool:
    """Whether an archive with arrays of these names is one of JHMDB's, whole or not."""
    return any(f"{part}_{name}" in names for part in PARTS for name in ARRAYS)


def open_jhmdb(path: str | os.PathLike[str]) -> Skeleton:
    """All clips of training, then all of testing, end to end; z is padded with 0. ``SourceError`` as ``clips_of``."""
    pose = np.concatenate([_part(path, part)[0] for part in PARTS])
    joints = np.pad(pose.astype(np.float32), ((0, 0), (0, 0), (0, 1)))
    return Skeleton(joints, JOINTS, BELLY, np.arange(len(joints), dtype=np.int32), len(joints), FPS, "jhmdb")


def clips_of(path: str | os.PathLike[str]) -> list[JhmdbClip]:
    """Every clip in the order of ``open_jhmdb``; clip i spans ``start / 30`` to ``stop / 30`` seconds of it.

    The file holds ``{part}_pose`` float [ΣT, 15, 2], ``{part}_length`` and ``{part}_label`` for both parts.

    Raises:
        SourceError: missing, damaged, or arrays that do not fit together.
    """
    clips: list[JhmdbClip] = []
    stop = 0
    for part in PARTS:
        _, lengths, labels = _part(path, part)
        for number, (length, label) in enumerate(zip(lengths.tolist(), labels.tolist(), strict=True)):
            clips.append(JhmdbClip(part, number, str(label), stop, stop + length))
            stop += length
    return clips


def _part(path: str | os.PathLike[str], part: Part) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    try:
        pose, length, label = (npz.read(path, f"{part}_{name}") for name in ARRAYS)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}); check the path.") from error
    except Exception as error:  # a damaged archive fails in zipfile, zlib or numpy, each in its own way
        raise SourceError(f"{path}: damaged or not JHMDB joints ({error}); copy the file again.") from error
    fits = pose.ndim == 3 and pose.shape[1:] == (JOINTS, 2) and length.shape == label.shape == (len(length),)
    if not fits or length.sum() != len(pose) or length.min(initial=1) < 1:
        raise SourceError(
            f"{path}: {part}_pose {list(pose.shape)}, {part}_length (sum {length.sum()}) and {part}_label "
            f"({len(label)}) do not fit together; expected [ΣT, {JOINTS}, 2]; copy the file again."
        )
    return pose, length, label
