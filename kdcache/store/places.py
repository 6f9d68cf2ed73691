"""Where a cache is copied from or to, a local folder or an address: both list, read and take files."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from kdcache.errors import OptionError, RemoteError, StoreError
from kdcache.files import PARTIAL, atomic, opened
from kdcache.remote import Address, Remote, is_address, without_scheme
from kdcache.seals import digest_of_file

_CHUNK = 2**20


class Listed(NamedTuple):
    """A file as a listing shows it."""

    size: int
    version: str
    """Changes with the content: time of change, or an ETag."""


class Place(Protocol):
    """A folder of files."""

    def files(self) -> dict[str, Listed]:
        """All files below it, hidden ones left out: path relative to it → size and version; none where it is not."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file; None where it is not."""
        ...

    def fetch(self, name: str, target: Path, size: int) -> None:
        """A copy of a file as a new local one."""
        ...

    def local(self, name: str) -> Path | None:
        """The file itself, where it is on this machine."""
        ...

    def take(self, name: str, make: Callable[[Path], None], ready: Path | None = None) -> Listed:
        """A file that appears whole or not at all; ``make`` writes it to the path given, or it is ``ready``."""
        ...


def place(text: str | os.PathLike[str]) -> Place:
    """A folder, or an address; ``OptionError`` for one with credentials in it, and for nothing at all."""
    if not (name := os.fspath(text)):
        raise OptionError("The name of a place is empty: name a folder (. is this one) or an address.")
    return Bucket(Address.of(name)) if is_address(name) else Folder(Path(without_scheme(name)))


class Folder:
    """A local folder, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def files(self) -> dict[str, Listed]:
        """See ``Place``."""
        found: dict[str, Listed] = {}
        for folder, folders, names in os.walk(self.path):
            folders[:] = [each for each in folders if not each.startswith(".")]
            for name in names:
                if not name.startswith(".") and not name.endswith(PARTIAL):
                    path = Path(folder) / name
                    state = path.lstat()
                    if not stat.S_ISREG(state.st_mode):  # a pipe is waited for, a link may lead to what is nobody's
                        raise StoreError(f"{path}: not a regular file; put the file itself there, or remove it.")
                    found[path.relative_to(self.path).as_posix()] = Listed(state.st_size, str(state.st_mtime_ns))
        return found

    def read(self, name: str) -> bytes | None:
        """See ``Place``."""
        try:
            with opened(self.path / name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def fetch(self, name: str, target: Path, size: int) -> None:
        """See ``Place``."""
        with open(self.path / name, "rb") as source, open(target, "wb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)

    def local(self, name: str) -> Path | None:
        """See ``Place``."""
        return self.path / name

    def take(self, name: str, make: Callable[[Path], None], ready: Path | None = None) -> Listed:
        """See ``Place``."""
        with atomic(self.path / name) as temporary:
            make(temporary)
        state = (self.path / name).stat()
        return Listed(state.st_size, str(state.st_mtime_ns))


class Bucket:
    """A place at an address."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._remote = Remote(address)

    def __str__(self) -> str:
        return str(self._address)

    def files(self) -> dict[str, Listed]:
        """See ``Place``."""
        try:
            found = self._remote.below(self._address)
        except RemoteError as error:
            if error.missing:
                return {}
            raise
        hidden = {name for name in found if any(part.startswith(".") and part != ".." for part in name.split("/"))}
        return {n: Listed(f.size, f.version) for n, f in found.items() if n not in hidden and not n.endswith(PARTIAL)}

    def read(self, name: str) -> bytes | None:
        """See ``Place``."""
        try:
            return self._remote.read(self._address.below(name))
        except RemoteError as error:
            if error.missing:
                return None
            raise

    def fetch(self, name: str, target: Path, size: int) -> None:
        """See ``Place``."""
        self._remote.fetch(self._address.below(name), target, size)

    def local(self, name: str) -> Path | None:
        """See ``Place``."""
        return None

    def take(self, name: str, make: Callable[[Path], None], ready: Path | None = None) -> Listed:
        """See ``Place``."""
        with tempfile.TemporaryDirectory(prefix="kdcache-copy-") as folder:
            path = ready or Path(folder) / "file"
            if ready is None:
                make(path)
            its = self._remote.put(path, self._address.below(name))
        return Listed(its.size, its.version)


def digest_of(where: Place, name: str, size: int) -> str:
    """SHA-256 of a file, hexadecimal; one that lies elsewhere is fetched for it."""
    if (path := where.local(name)) is not None:
        return file_digest(path)
    with tempfile.TemporaryDirectory(prefix="kdcache-copy-") as folder:
        path = Path(folder) / "file"
        where.fetch(name, path, size)
        return file_digest(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a local file, hexadecimal."""
    try:
        return digest_of_file(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); check the disk.") from error
