"""One writer at a time to the index of a cache folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import StoreError

_NOT_OURS = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock (``.lock``); waits for other processes, and is let go when this one dies.

    Where this process may not write, an existing lock is held all the same; without one there is nothing to hold.

    Raises:
        StoreError: a folder, or a link that leads nowhere, has the lock's name.
    """
    lock = _open(folder / ".lock")
    try:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if path.is_dir() or path.is_symlink():
            raise StoreError(
                f"{path}: no plain file, so nobody can hold it; remove it and run the same command again."
            ) from error
        if error.errno not in _NOT_OURS:
            raise
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return os.open(path, os.O_RDONLY)
    return None
