"""Opening a skeleton file by its suffix, and by what an archive holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kdcache.errors import SourceError
from kdcache.skeletons.arrays import SUFFIXES, JointLayout, array_names, read_array
from kdcache.skeletons.base import Skeleton
from kdcache.skeletons.jhmdb import is_jhmdb, open_jhmdb
from kdcache.skeletons.msr import read_msraction3d
from kdcache.skeletons.ntu import read_ntu


def open_skeleton(path: str | os.PathLike[str], layout: JointLayout | None = None) -> Skeleton:
    """Open a skeleton file: ``.txt`` is MSR Action3D, ``.skeleton`` NTU RGB+D, ``.npz`` JHMDB's joints or an array, and
    ``.npy`` an array.

    JHMDB's files hold many clips: they lie end to end, those of training first, and are cut out by ``span``; damage
    in one of them is found there.

    Args:
        path: the file.
        layout: of arrays of other sensors, which do not say their centre joint and rate; see ``read_array``.

    Raises ``SourceError``, naming the file and where it is wrong: missing, empty, damaged, without any joint, an array
    without a layout, or a layout for a format that has its own.
    """
    if _is_array(path):
        return read_array(path, layout)
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise SourceError(
            f"{path}: not a skeleton file; give MSR Action3D text (.txt), NTU RGB+D text (.skeleton), JHMDB's joints "
            "(.npz) or an array of joints (.npy, .npz)."
        )
    if layout is not None:
        raise SourceError(
            f"{path}: files of this format have a centre joint and a rate of their own; leave centre_joint and "
            "skeleton_fps out."
        )
    return READERS[suffix](path)


def check_skeleton(path: str | os.PathLike[str]) -> None:
    """Refuse what is no skeleton file, as ``open_skeleton`` does; what only a layout tells of an array is not asked."""
    if not _is_array(path):
        open_skeleton(path)


def first_array(paths: Sequence[str]) -> str | None:
    """The first file with joints of any sensor in an array, or ``None``.

    Of many archives only the first that can be opened is looked into: a set's are of one kind.
    """
    for path in paths:
        if path.lower().endswith(".npy"):
            return path
    for path in paths:
        if not path.lower().endswith(".npz"):
            continue
        try:
            return path if _is_array(path) else None
        except SourceError:
            continue  # missing or damaged: the clips that need it say so
    return None


def _is_array(path: str | os.PathLike[str]) -> bool:
    """Whether joints lie there in an array of any sensor's; ``SourceError`` for one that cannot be opened."""
    if Path(path).suffix.lower() not in SUFFIXES:
        return False
    return not is_jhmdb(array_names(path))


READERS: dict[str, Callable[[str | os.PathLike[str]], Skeleton]] = {
    ".skeleton": read_ntu,
    ".npz": open_jhmdb,
    ".txt": read_msraction3d,
}
