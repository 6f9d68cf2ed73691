"""Finding sources below their roots, which nothing leaves, and a cheap identity of what lies at a path."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from kdcache.errors import KdcacheError, SourceError
from kdcache.roots import Roots

_HEAD = b"kdcache source 1\n"
_ODD = ("", ".", "..")  # names that are no file's
_EDGE, _BLOCK, _BLOCKS = 64 * 1024, 4 * 1024, 16


def inside(root: str | os.PathLike[str], relative: str | os.PathLike[str]) -> Path:
    """The absolute path of ``relative`` below ``root``, with links resolved.

    Raises:
        SourceError: ``relative`` is empty or absolute, or leaves ``root`` through ``..`` or a symbolic link.
    """
    text = os.fspath(relative)
    if not text or "\0" in text:
        raise SourceError(f"{text!r} is no path; give one relative to {root}.")
    if os.path.isabs(text):
        raise SourceError(f"{text}: an absolute path; give it relative to the root {root}.")
    base = Path(root).resolve()
    path = _resolved(base / text)
    if not path.is_relative_to(base):
        raise SourceError(f"{text}: leads out of the root {root} to {path}; put it below the root or choose that root.")
    return path


def _resolved(path: Path) -> Path:
    """The path that links lead to; ``SourceError`` where they lead to themselves, or where a name is too long."""
    try:
        resolved = path.resolve()
        resolved.exists()  # asks the system, which resolving does not do for names that are too long
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "links that lead to themselves"
        raise SourceError(f"{path}: no path that can be followed ({reason}); correct it.") from error
    return resolved


class Finder:
    """``find`` for many sources, as text: folders are resolved once, files only where they are links."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._folders: dict[str, str] = {}

    def find(self, source: str) -> tuple[str, os.stat_result | None]:
        """See ``find``; with what the system says of it where it is a file that was looked at."""
        folder, _, name = source.rpartition("/")
        if name in _ODD or source[0] == "/":
            return str(find(self._roots, source)), None
        try:
            if (base := self._folders.get(folder)) is None:
                if len(self._roots.folders) != 1:
                    return str(find(self._roots, source)), None
                base = self._folders[folder] = os.path.join(inside(self._roots.folders[0], folder or "."), "")
            path = base + name
            state = os.lstat(path)
        except FileNotFoundError:
            return path, None
        except (OSError, ValueError, SourceError):
            return str(find(self._roots, source)), None
        if stat.S_ISREG(state.st_mode):
            return path, state
        return (str(find(self._roots, source)) if stat.S_ISLNK(state.st_mode) else path), None

    def look(self, source: str) -> tuple[str, int, int] | None:
        """Path, size and time of change in ns of a plain file; ``None`` for all that ``find`` must look at closer."""
        folder, _, name = source.rpartition("/")
        base = self._folders.get(folder)
        if base is None or name in _ODD or source[0] == "/":
            try:
                path, seen = self.find(source)  # which knows the folder from then on
            except (OSError, KdcacheError):  # why, is said by who asks ``find``
                return None
            return None if seen is None else (path, seen.st_size, seen.st_mtime_ns)
        try:
            state = os.lstat(path := base + name)
        except (OSError, ValueError):
            return None
        return (path, state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None


def find(roots: Roots, source: str) -> Path:
    """The absolute path of a source, links resolved; of one root it need not exist.

    A relative one is looked for below each root in turn. An absolute one is taken as it is where the roots allow that.

    Raises:
        SourceError: it leaves a root, is in none of several roots, or in two with different content; or it is relative
            and there is no root, or absolute and that is not allowed.
    """
    if roots.allow_absolute and os.path.isabs(source):
        return _resolved(Path(source))
    if not roots.folders:
        raise SourceError(f"{source}: a relative path, and no root was given; pass --root with its folder.")
    paths = [inside(folder, source) for folder in roots.folders]
    if len(paths) == 1:
        return paths[0]
    there = [path for path in paths if path.exists()]
    if not there:
        raise SourceError(f"{source}: not below {roots}; put it there or remove its rows from the manifest.")
    other = next((p for p in there[1:] if p != there[0] and fingerprint(p) != fingerprint(there[0])), None)
    if other is not None:
        raise SourceError(f"{source}: {there[0]} and {other} differ; give one of these roots alone, or rename one.")
    return there[0]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """A cheap identity of a source's content, for cache keys: 32 hex digits of a SHA-256.

    A file is named by its size, its first and last 64 KiB and 16 blocks of 4 KiB spread evenly over it: at most 192 KiB
    are read, whatever its size (about 0.3 ms a file from memory, two or three seeks' worth from disk). A folder is
    named by the names and sizes of the files in it, without opening them. Two contents that differ only between the
    blocks, or in a folder at equal sizes, get the same name: this detects replaced, re-encoded and cut sources, not
    tampering.

    Raises:
        SourceError: missing or unreadable.
    """
    name = os.fspath(path)
    try:
        if os.path.isdir(name):
            with os.scandir(name) as entries:
                files = [(e.name, e.stat().st_size) for e in entries if not e.name.startswith(".") and e.is_file()]
            return fingerprint_of_folder(files)
        if not os.path.isfile(name) and os.path.exists(name):
            raise SourceError(f"{name}: neither a file nor a folder; give a video or a folder of frames.")
        with open(name, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return fingerprint_of_file(size, [os.pread(file.fileno(), n, start) for start, n in parts_read(size)])
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            f"{name}: cannot be read ({error.strerror}); check that it exists and may be read."
        ) from error


def parts_read(size: int) -> list[tuple[int, int]]:
    """The parts (start, length) that name a file of that many bytes."""
    spread = [(max(0, size - _BLOCK) * k // (_BLOCKS - 1), _BLOCK) for k in range(_BLOCKS)]
    parts = [(0, _EDGE), (max(0, size - _EDGE), _EDGE), *spread]
    return [(start, min(length, size - start)) for start, length in parts]


def fingerprint_of_file(size: int, parts: Iterable[bytes]) -> str:
    """As ``fingerprint``, of a file's size and the bytes of ``parts_read``."""
    digest = hashlib.sha256(_HEAD)
    digest.update(size.to_bytes(8, "little"))
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def fingerprint_of_folder(files: Iterable[tuple[str, int]]) -> str:
    """As ``fingerprint``, of the names and sizes of the files in a folder."""
    digest = hashlib.sha256(_HEAD)
    for entry, size in sorted(files):
        digest.update(f"{entry}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]
