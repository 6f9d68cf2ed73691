"""Folders of ``.npy`` and ``.npz`` files, one array each: their names, and reading them without running code."""

from __future__ import annotations

import io
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, SourceError
from kdcache.exchange.arrays import ArrayHeader
from kdcache.sources import inside

SUFFIXES = (".npy", ".npz")

_UNSAFE = re.compile(r"[%/\\:]|^\.")
_RESERVED = re.compile(r".*(\.np[yz]|\.json|\.csv)", re.IGNORECASE)  # a folder of this name would stand in a file's way
_BROKEN = (  # what numpy and zipfile raise on damaged files
    *(ValueError, TypeError, LookupError, ArithmeticError, EOFError, OSError, RuntimeError, MemoryError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def flat_name(name: str) -> str:
    """A name as one file in a folder: ``% / \\ :`` and a leading dot written as %25, %2F …"""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", name) + ".npy"


def file_name(name: str) -> str:
    """The file for a clip id or another name: ``bend/daria`` is ``bend/daria.npy``, in a folder.

    In each part ``% \\ :`` and a leading dot are written as %25, %5C …, so that no name leads out of the folder. Names
    with an empty part, or with a part that is also a file's name (``a.npy/b``), become one file: ``a.npy%2Fb.npy``.
    """
    *folders, last = name.split("/")
    if not all([*folders, last]) or any(_RESERVED.fullmatch(part) for part in folders):
        return flat_name(name)
    return "/".join([*(flat_name(part).removesuffix(".npy") for part in folders), flat_name(last)])


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as a ``.npy`` file; where a disk is full, numpy's own writing does not say so."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


class NpyFolder:
    """A folder with one array a file."""

    source = "npy"
    one, several = "file", "files"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, names: Sequence[str]) -> Path:
        """The first file there is for these names: ``class/clip.npy`` or ``class%2Fclip.npy``, or as ``.npz``.

        Raises:
            ClipError: there is none inside the folder.
        """
        for name in names:
            own = () if os.path.isabs(name) else (name,)  # an absolute source's file lies in the folder, too
            stems = dict.fromkeys((flat_name(name)[:-4], file_name(name)[:-4], *own))
            for path in (self._inside(stem + suffix) for suffix in SUFFIXES for stem in stems):
                if path.is_file():
                    return path
        raise ClipError(f"{self.folder} has no {file_name(names[0])}; put it there, or leave the clip out.")

    def shown(self, where: Path) -> str:
        """The file, for messages."""
        return str(where)

    def header(self, where: Path) -> ArrayHeader:
        """What a file holds, without reading it whole.

        Raises:
            ClipError: it cannot be read, is pickled, or shorter than its header says.
        """
        if where.suffix == ".npz":
            with _opened(where), zipfile.ZipFile(where) as archive:
                return _header(archive, _member(archive, where))
        array = self._map(where)
        return ArrayHeader(array.dtype, array.shape)

    def read(self, where: Path, rows: slice = slice(None)) -> NDArray[Any]:
        """The array, or some of its rows; ``ClipError`` as of ``header``."""
        if where.suffix != ".npz":
            array = self._map(where)
            return np.array(array[rows] if array.ndim else array)
        with _opened(where), zipfile.ZipFile(where) as archive:
            member = _member(archive, where)
            _header(archive, member)
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            return np.array(array[rows] if array.ndim else array)

    def others(self, used: Collection[Path]) -> Iterator[str]:
        """Arrays of the folder beside those used, by name."""
        known = {os.fspath(path) for path in used}
        root = self.folder.resolve()
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                path = os.path.join(folder, name)
                if name.endswith(SUFFIXES) and os.path.realpath(path) not in known:
                    yield os.path.relpath(path, root)

    def _inside(self, name: str) -> Path:
        try:
            return inside(self.folder, name)
        except SourceError as error:
            raise ClipError(str(error)) from error

    @staticmethod
    def _map(path: Path) -> NDArray[Any]:
        with _opened(path):
            return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    """Inside, whatever goes wrong with a file is a ``ClipError`` that names it."""
    try:
        yield
    except ClipError:
        raise
    except _BROKEN as error:
        raise ClipError(
            f"{path} is not a {path.suffix} file that can be read ({error}); write it again with "
            f"{'numpy.savez' if path.suffix == '.npz' else 'numpy.save'}."
        ) from error


def _member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = archive.infolist()
    if len(members) != 1:
        names = ", ".join(m.filename.removesuffix(".npy") for m in members[:5]) or "none"
        raise ClipError(f"{path} holds {len(members)} arrays ({names}), not one; save the one to import alone.")
    return members[0]


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    """The header of an archive's array, held against the size of the file it is packed in."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"its format {version} is unknown")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects")
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError("its array is not as long as its header says")
    return ArrayHeader(dtype, shape)
