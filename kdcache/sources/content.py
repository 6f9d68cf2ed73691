"""All bytes of a source as one digest, and what tells without opening it that it may have changed."""

from __future__ import annotations

import hashlib
import os
import stat

from kdcache.errors import SourceError


def content_digest(path: str | os.PathLike[str]) -> str:
    """An identity of all bytes of a file, or of all files in a folder and their names: 32 hex digits of a SHA-256.

    Raises:
        SourceError: missing, unreadable, or neither a file nor a folder.
    """
    name = os.fspath(path)
    digest = hashlib.sha256(b"kdcache content 1\n")
    try:
        files = [os.path.join(name, entry) for entry, _, _ in _entries(name)] if os.path.isdir(name) else [name]
        for each in files:
            if not os.path.isfile(each) and os.path.exists(each):
                raise SourceError(f"{each}: neither a file nor a folder; give a video or a folder of frames.")
            with open(each, "rb", buffering=0) as file:
                its = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{os.path.relpath(each, name)}\0{its}\n".encode(errors="surrogateescape"))
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{name}: cannot be read ({error.strerror}); check that it may be read.") from error
    return digest.hexdigest()[:32]


def signature(path: str | os.PathLike[str]) -> tuple[int, int]:
    """What changes when a source is written to, without opening it: its size, and a number made of times of change.

    Raises:
        OSError: there is no such file.
    """
    name = os.fspath(path)
    state = os.stat(name)
    if not stat.S_ISDIR(state.st_mode):
        return state.st_size, state.st_mtime_ns
    entries = _entries(name)
    digest = hashlib.sha256(repr(entries).encode(errors="surrogateescape")).digest()
    return sum(size for _, size, _ in entries), int.from_bytes(digest[:7], "big")


def _entries(folder: str) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files directly in a folder, by name."""
    with os.scandir(folder) as entries:
        files = [e for e in entries if not e.name.startswith(".") and e.is_file()]
        return sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in files)
