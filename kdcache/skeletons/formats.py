"""Opening a skeleton file by its suffix."""

from __future__ import annotations

import os
from pathlib import Path

from kdcache.errors import SourceError
from kdcache.skeletons.base import Skeleton
from kdcache.skeletons.jhmdb import open_jhmdb
from kdcache.skeletons.msr import read_msraction3d
from kdcache.skeletons.ntu import read_ntu


def open_skeleton(path: str | os.PathLike[str]) -> Skeleton:
    """Open a skeleton file: ``.txt`` is MSR Action3D, ``.skeleton`` NTU RGB+D, ``.npz`` JHMDB's joints.

    JHMDB's files hold many clips: they lie end to end, those of training first, and are cut out by ``span``; damage
    in one of them is found there.

    Raises ``SourceError``, naming the file and where it is wrong: missing, empty, damaged, or without any joint.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".skeleton":
        return read_ntu(path)
    if suffix == ".npz":
        return open_jhmdb(path)
    if suffix == ".txt":
        return read_msraction3d(path)
    raise SourceError(
        f"{path}: not a skeleton file; give MSR Action3D text (.txt), NTU RGB+D text (.skeleton) or JHMDB's joints "
        f"(.npz)."
    )
