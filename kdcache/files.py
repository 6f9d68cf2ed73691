"""Writing files so that a reader sees the old content or the new one, never a half."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from kdcache.errors import KdcacheError, WriteError

PARTIAL = ".partial"  # suffix of every file still being written; leftovers are safe to delete

STALE_S = 24 * 3600.0  # a temporary file untouched for this long has no living writer, whatever its host
_REFUSED = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "allow larger files",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "let this user write there, or choose another folder",
    errno.EPERM: "let this user write there, or choose another folder",
    errno.EIO: "check the disk",
}
"""Why a disk takes no file, and what to do."""

_OURS = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(?P<pid>\d+)\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")


def temporary_name(name: str) -> str:
    """A hidden name for a file still being written, which names the host and process that write it."""
    return f".{name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{PARTIAL}"


def writer(name: str) -> int | None:
    """The process of this host that a ``temporary_name`` identifies; ``None`` for any other name."""
    ours = _OURS.fullmatch(name)
    return int(ours["pid"]) if ours else None


def abandoned(path: Path) -> bool:
    """Whether the writer of a temporary file is gone: a dead process of this host, or nothing written for a day.

    Raises:
        FileNotFoundError: its writer has just finished.
    """
    process = writer(path.name)
    return time.time() - path.stat().st_mtime > STALE_S or (process is not None and not _alive(process))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody asked how: for good, in a container whose first process asks for none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # it has just gone, or no Linux
        return False
    return status.rpartition(b")")[2].split()[:1] == [b"Z"]


def opened(path: str | os.PathLike[str]) -> BufferedReader:
    """A plain file, to read; of others, such as a pipe without a writer, opening alone may wait for ever.

    Raises:
        KdcacheError: a folder, a pipe, a device or a socket.
        OSError: it cannot be opened.
    """
    refused = KdcacheError(f"{path}: no plain file but a folder, a pipe or a device; remove it, or put the file there.")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise refused from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise refused
    return os.fdopen(handle, "rb")


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it into place.

    On any exception the temporary file is removed and ``path`` is left as it was.

    Raises:
        WriteError: the disk is full or broken, the folder may not be written to, or ``path`` is a device, in whose
            place a file would stand for every program of the machine.
    """
    final = Path(path)
    if _is_device(final):
        raise unwritable(final, "it is a device", "name a file")
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(temporary_name(final.name))
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(final.parent)


def _is_device(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """``WriteError`` naming ``path`` where what is done inside finds the disk full, broken or not to be written to."""
    try:
        yield
    except OSError as error:
        if isinstance(error, KdcacheError) or error.errno not in _REFUSED:
            raise
        raise unwritable(path, *refusal(error), error.errno) from error


def refusal(error: OSError) -> tuple[str, str]:
    """Why a file could not be written, in the system's words, and what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return reason, _REFUSED.get(error.errno or 0, "see that the folder is there and can be written to")


def unwritable(
    path: str | os.PathLike[str], reason: str, remedy: str = "free some space", number: int | None = None
) -> WriteError:
    """The error for a file that could not be written."""
    error = WriteError(f"{os.fspath(path)} cannot be written ({reason}): {remedy}; then the same command goes on.")
    error.errno = number
    return error


def sync(path: Path) -> None:
    """Flush a file's (or folder's) content to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file where the file system has them, for weights of many runs fill disks; else a copy.

    Files of finished stages are replaced, never changed in place."""
    with writing(target):
        Path(target).unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            try:
                shutil.copyfile(source, target)
            except BaseException:
                Path(target).unlink(missing_ok=True)
                raise
