"""Giving a finished shard its name, and removing temporary files of writers that died."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdcache.files import PARTIAL, abandoned, sync, temporary_name
from kdcache.store.layout import StrPath
from kdcache.store.lock import locked

QUARANTINED = ".damaged"  # suffix of a shard that verify --repair set aside

SHARD = re.compile(r"shard-(\d{5,})\.h5")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def shard_files(folder: Path) -> list[Path]:
    """The published shards of a folder, by number."""
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := SHARD.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def is_shard_name(path: Path) -> bool:
    """Whether a file is called as shards are."""
    return SHARD.fullmatch(path.name) is not None


@contextmanager
def partial_file(folder: Path) -> Iterator[Path]:
    """Yield a temporary name for a shard, with host and process in it; a file left under it is removed."""
    path = folder / temporary_name("shard")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def publish(temporary: Path, folder: Path) -> str:
    """Flush a finished file to the disk and give it the next free shard name, which no other writer can take.

    Numbers are never used twice, not even that of a shard set aside as damaged.

    Returns:
        The file name.
    """
    sync(temporary)
    names = [m for p in folder.iterdir() if (m := SHARD.fullmatch(p.name.removesuffix(QUARANTINED)))]
    number = 1 + max((int(m[1]) for m in names), default=-1)
    while True:
        final = folder / f"shard-{number:05d}.h5"
        try:
            os.link(temporary, final)  # fails when the name is taken; a rename would overwrite
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with locked(folder):  # a file system without hard links
                if not final.exists():
                    os.rename(temporary, final)
                    break
            number += 1
    sync(folder)
    return final.name


def clean(folder: StrPath) -> list[str]:
    """Remove temporary files whose writer is gone: a dead process of this host, or nothing written for a day.

    Returns:
        The names of the files removed.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".*{PARTIAL}")):
        try:
            if abandoned(path):
                path.unlink()
                removed.append(path.name)
        except FileNotFoundError:  # its writer has just finished
            continue
    return removed


class Sink(io.RawIOBase):
    """A file for HDF5 to write to that keeps an error instead of raising it within HDF5.

    HDF5 cannot give up a file that the disk refuses to take: it leaks the descriptor (and with it the space) and
    may crash the process later. So the first error is kept here, everything after it is dropped, and the caller
    raises it once HDF5 has closed the file.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._place = 0
        self.error: OSError | None = None

    def raise_error(self) -> None:
        """Raise the first error met, if any."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """The place in the file."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read what has been written."""
        view = memoryview(buffer).cast("B")
        data = os.pread(self._fd, len(view), self._place)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        """Write all of ``data``, or keep the error and drop it."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self._fd, view[done:], self._place + done)
            except OSError as error:
                self.error = error
        self._place += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length."""
        size = self._place if size is None else size
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self.error = self.error or error
        return size

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._fd)
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
