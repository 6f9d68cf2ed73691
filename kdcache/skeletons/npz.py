"""Arrays in ``.npy`` and ``.npz`` files, read only once their headers fit the bytes that hold them.

``numpy.load`` allocates what a header says: a file of a kilobyte may ask for gigabytes.
"""

from __future__ import annotations

import math
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdcache.skeletons.base import MOST_BYTES, openable

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def names_in(path: str | os.PathLike[str]) -> list[str]:
    """The arrays of an ``.npz``; none of an ``.npy``, whose array has no name.

    Raises:
        SourceError: no plain file, or larger than a file of joints can be.
        Exception: whatever zipfile or numpy meets in a damaged file.
    """
    openable(path)
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            _fits(file, os.path.getsize(path))
        return []
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read(path: str | os.PathLike[str], name: str | None) -> NDArray[Any]:
    """One array: of an ``.npz`` the one called ``name``, of an ``.npy`` its only one. Errors as ``names_in``."""
    openable(path)
    with open(path, "rb") as file:
        if name is None:
            _fits(file, os.path.getsize(path))
            file.seek(0)
            return np.asarray(npy.read_array(file, allow_pickle=False))
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
            with archive.open(info) as member:
                _fits(member, info.file_size)
            with archive.open(info) as member:
                return np.asarray(npy.read_array(member, allow_pickle=False))


def _fits(file: Any, size: int) -> None:
    """``ValueError`` where the array that a header describes is not what is there, ``size`` bytes, or is too large."""
    if size > MOST_BYTES:
        raise ValueError(f"an array of {size:,} bytes; joints take no more than {MOST_BYTES:,}")
    stream: BinaryIO = file
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"npy format {version}")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError("objects, which only unpickling could read")
    needed = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or needed > size:
        raise ValueError(f"its header says {needed:,} bytes, and it has {size:,}")
