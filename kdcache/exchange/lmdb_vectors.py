"""Reading an LMDB of one float32 vector a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.files import opened

MOST_NUMBERS = 2**24  # of one frame's vector


def library() -> Any:
    """The module ``lmdb``; ``OptionError`` where it is not installed."""
    try:
        import lmdb
    except ImportError as error:
        raise OptionError(
            "LMDB files need the package lmdb, which is not installed: run `pip install 'kdcache[lmdb]'`."
        ) from error
    return lmdb


class Vectors:
    """The vectors of one open environment.

    Values are looked at before they are copied: a damaged length would be read beyond the end of the file.
    """

    def __init__(self, path: Path, transaction: Any) -> None:
        self.path, self._transaction = path, transaction
        cursor = transaction.cursor()
        if not cursor.first():
            raise SourceError(f"{path}: the LMDB is empty; name another.")
        self._example = bytes(cursor.key())
        self.size, rest = divmod(len(cursor.value()), 4)
        if rest or not 0 < self.size <= MOST_NUMBERS:
            raise SourceError(f"{path}: {_shown(self._example)} is not a float32 vector; name an LMDB of features.")

    def read(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """The vectors of some frames, float32 [T, d].

        Raises:
            ClipError: keys that are not there; says how many, and the first.
            SourceError: a value of another length.
        """
        found = {key: self._transaction.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, value in found.items() if value is None]
        if missing:
            raise ClipError(
                f"{len(missing)} of its {len(found)} frames are not in {self.path} (first {_shown(missing[0])}; "
                f"keys there look like {_shown(self._example)}); check --key, --fps and --first, or leave the clip out."
            )
        for key, value in found.items():
            if len(value) != 4 * self.size:
                raise SourceError(
                    f"{self.path}: {_shown(key)} holds {len(value)} bytes, {_shown(self._example)} {4 * self.size}; "
                    "all frames of a stream need vectors of one length: mend the LMDB."
                )
        return np.stack([np.frombuffer(found[key], "<f4") for key in keys])

    def last(self, before: bytes, after: bytes) -> int:
        """The highest frame number of a source among keys ``before`` + number + ``after``.

        Raises:
            ClipError: there is none.
        """
        highest = -1
        cursor = self._transaction.cursor()
        if cursor.set_range(before):
            for key in cursor.iternext(keys=True, values=False):
                key = bytes(key)
                if not key.startswith(before):
                    break
                middle = key[len(before) : len(key) - len(after)]
                if key.endswith(after) and middle.isdigit():
                    highest = max(highest, int(middle))
        if highest < 0:
            raise ClipError(f"no key in {self.path} begins with {_shown(before)}; check --key, or leave the clip out.")
        return highest


@contextmanager
def open_vectors(path: Path) -> Iterator[Vectors]:
    """Open an LMDB (a folder with ``data.mdb``, or a single file) for reading; nothing in it is changed."""
    lmdb = library()
    if (file := path / "data.mdb" if path.is_dir() else path).exists():
        opened(file).close()  # of a pipe LMDB waits for ever
    try:
        with lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False, readahead=False
        ) as environment:
            if is_cut_off(file, environment):
                raise SourceError(f"{file}: the file is cut off at {file.stat().st_size:,} bytes; copy it again.")
            with environment.begin(buffers=True) as transaction:
                yield Vectors(path, transaction)
    except lmdb.Error as error:
        raise SourceError(f"{path}: cannot be read as an LMDB ({error}); name the folder with data.mdb.") from error


def is_cut_off(file: Path, environment: Any) -> bool:
    """Whether an LMDB's file ends before the last page in use: reading that would end the process (SIGBUS)."""
    return bool(file.stat().st_size < (environment.info()["last_pgno"] + 1) * environment.stat()["psize"])


def _shown(key: bytes) -> str:
    return repr(key.decode(errors="replace"))
