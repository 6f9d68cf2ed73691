"""Sources at addresses, fetched once into a folder of limited size that processes share.

The folder holds an entry for each source, ``DIGEST-BYTES/NAME``, named by its address and the version that lies there;
where a server states none, it is fetched anew unless its fingerprint is known.
Whoever reads an entry holds its lock (``DIGEST-BYTES.lock``, shared) until it is done; entries that nobody holds are
removed when there is no room for a new one, those used longest ago first. An entry appears whole: it is fetched under a
temporary name while its lock is held alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import KdcacheError, OptionError, RemoteError, StoreError
from kdcache.files import PARTIAL, abandoned, refusal, temporary_name
from kdcache.log import logger
from kdcache.remote import Address, FetchStopped, Remote, RemoteFile, is_address, without_scheme
from kdcache.sources.paths import fingerprint, fingerprint_of_file, fingerprint_of_folder, parts_read

DEFAULT_GB = 20.0
WHOLE = 2**20  # a file up to this size is read in one request for its fingerprint
KEPT = 0.9  # of the limit, after entries had to be removed
WAIT_S = 0.2
_TRIES = 2  # of a source that arrives as another than was expected

_ENTRY = re.compile(r"\.?[0-9a-f]{32}-(?P<size>\d+)(\..*)?")


def default_folder() -> Path:
    """``kdcache/sources`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdcache" / "sources"


@dataclass(frozen=True)
class SourceCache:
    """Local copies of sources.

    Attributes:
        folder: where they lie; made when the first is fetched.
        limit: bytes that they may take together.
    """

    folder: Path
    limit: int

    @classmethod
    def of(cls, folder: str | os.PathLike[str] | None, gigabytes: float | None = None) -> SourceCache:
        """As options give it; ``OptionError`` for a limit that holds nothing."""
        gigabytes = DEFAULT_GB if gigabytes is None else gigabytes
        if not 0 < gigabytes < float("inf"):
            raise OptionError(f"source_cache_gb is {gigabytes:g}: give the gigabytes that fetched sources may take.")
        return cls(Path(folder or default_folder()).absolute(), int(gigabytes * 1e9))

    @contextmanager
    def held(
        self, address: Address, expected: str | None = None, stopped: Callable[[], bool] | None = None
    ) -> Iterator[Path]:
        """A local copy of a file or folder, which stays as long as it is held.

        Args:
            address: what to have.
            expected: its fingerprint, where it is known.
            stopped: asked while waiting and while bytes arrive; where it says so, the fetch is given up.

        Raises:
            FetchStopped: it was given up.
            RemoteError: it cannot be fetched, is larger than the whole cache, or is not what was expected.
            StoreError: the local disk is full or cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock, path = self._acquire(address, expected, stopped or _never)
        except OSError as error:
            if isinstance(error, KdcacheError):
                raise
            reason, remedy = refusal(error)
            raise StoreError(
                f"{self.folder}: sources cannot be fetched into it ({reason}); {remedy}, or give --source-cache."
            ) from error
        with lock:
            yield path

    def _acquire(self, address: Address, expected: str | None, stopped: Callable[[], bool]) -> tuple[io.IOBase, Path]:
        """The lock of an entry that is there, held with others, and the path of its content."""
        remote = Remote(address)
        files = described(remote, address)
        entry = self.folder / _entry_name(address, files)
        path = entry / address.name
        named = all(its.version for its in files.values())  # else other bytes of that size have this name, too
        tries = 0

        def right() -> bool:
            return fingerprint(path) == expected if expected is not None else named or tries > 0

        while True:
            lock = _locked(entry, fcntl.LOCK_SH)
            if entry.is_dir():
                if right():
                    with suppress(OSError):
                        os.utime(entry)
                    return lock, path
                if tries == _TRIES:
                    lock.close()
                    raise RemoteError(f"{address}: has changed since it was listed; run the same command again.")
            lock.close()
            with _locked(entry, fcntl.LOCK_EX):
                if entry.is_dir() and not right():
                    _remove(entry)
                    self._count(-sum(its.size for its in files.values()))
                if not entry.is_dir():
                    self._fetch(remote, address, files, entry, stopped)
            tries += 1

    def _fetch(
        self,
        remote: Remote,
        address: Address,
        files: dict[str, RemoteFile],
        entry: Path,
        stopped: Callable[[], bool],
    ) -> None:
        size = sum(its.size for its in files.values())
        if size > self.limit:
            raise RemoteError(
                f"{address}: {size / 1e9:.1f} GB, and fetched sources may take {self.limit / 1e9:.1f} GB; raise "
                "--source-cache-gb."
            )
        self._make_room(size, stopped)
        began = time.perf_counter()
        temporary = entry.with_name(temporary_name(entry.name))
        try:
            target = temporary / address.name
            (temporary if "" in files else target).mkdir(parents=True)
            for name, its in files.items():
                each = (address.below(name), target / name) if name else (address, target)
                remote.fetch(*each, its.size, stopped)
            os.rename(temporary, entry)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            _lock_of(entry).unlink(missing_ok=True)
            self._count(-size)
            raise
        logger.debug("%s: %.1f MB fetched in %.1f s", address, size / 1e6, time.perf_counter() - began)

    def _make_room(self, size: int, stopped: Callable[[], bool]) -> None:
        """Reserve so many bytes; waits while all that is there is in use."""
        said = False
        while True:
            with _locked(self.folder / ".usage", fcntl.LOCK_EX):
                used = self._used()
                if used + size > self.limit or size > shutil.disk_usage(self.folder).free:
                    used = self._evict(max(0, min(int(KEPT * self.limit), self.limit - size)), size)
                if used + size <= self.limit:
                    if size > shutil.disk_usage(self.folder).free:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    (self.folder / ".usage").write_text(str(used + size))
                    return
            if not said:
                logger.warning("%s: all sources in it are in use; waiting for room (--source-cache-gb)", self.folder)
            said = True
            if stopped():
                raise FetchStopped
            time.sleep(WAIT_S)

    def _count(self, size: int) -> None:
        with _locked(self.folder / ".usage", fcntl.LOCK_EX):
            (self.folder / ".usage").write_text(str(max(0, self._used() + size)))

    def _used(self) -> int:
        """Bytes of all entries and of those being fetched, as last counted; the caller holds the lock of the count."""
        try:
            return int((self.folder / ".usage").read_text())
        except (FileNotFoundError, ValueError):
            return sum(size for _, _, size in self._entries())

    def _entries(self) -> list[tuple[float, Path, int]]:
        """Time of last use, path and size of entries and of those being fetched; leftovers of the dead are removed."""
        found: list[tuple[float, Path, int]] = []
        for path in self.folder.iterdir():
            match = _ENTRY.fullmatch(path.name)
            if match is None or path.suffix == ".lock":
                continue
            try:
                if path.name.endswith(PARTIAL) and abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                found.append((path.stat().st_mtime, path, int(match["size"])))
            except FileNotFoundError:
                continue
        return sorted(found)

    def _evict(self, most: int, size: int) -> int:
        """Remove what nobody holds, used longest ago first, until at most ``most`` bytes are left; what is left."""
        entries = self._entries()
        used = sum(size for _, _, size in entries)
        for _, path, its in entries:
            if used <= most and size <= shutil.disk_usage(self.folder).free:
                break
            if path.name.endswith(PARTIAL):
                continue
            lock = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.closed:
                continue
            with lock:
                _remove(path)
                _lock_of(path).unlink(missing_ok=True)
            used -= its
            logger.debug("%s: removed from the sources that were fetched", path)
        (self.folder / ".usage").write_text(str(used))
        return used


def _never() -> bool:
    return False


@contextmanager
def at_hand(source: str | os.PathLike[str], cache: SourceCache | None = None) -> Iterator[Path]:
    """One source as a path of this machine: itself, or what was fetched from its address.

    Raises:
        RemoteError, StoreError: as ``SourceCache.held``; ``OptionError`` for an address with credentials in it.
    """
    text = without_scheme(os.fspath(source))
    if not is_address(text):
        yield Path(text)
        return
    with (cache or SourceCache.of(None)).held(Address.of(text)) as path:
        yield path


def described(remote: Remote, address: Address) -> dict[str, RemoteFile]:
    """The files that make up a source: itself under the name ``""``, or those of a folder by name; ``RemoteError``."""
    its = remote.info(address)
    files = {n: f for n, f in remote.files(address).items() if not f.folder} if its.folder else {"": its}
    if not files:
        raise RemoteError(f"{address}: a folder without files; check the address, or put frames there.")
    if any(each.size < 0 for each in files.values()):
        raise RemoteError(f"{address}: the server does not say how large it is, so it cannot be fetched safely.")
    return files


def remote_fingerprint(remote: Remote, address: Address, its: RemoteFile, cache: SourceCache) -> str:
    """The fingerprint that a local copy of a source would have, of 18 small reads; a folder's of its list alone.

    From a server that gives no parts of files it is fetched into the cache.

    Raises:
        RemoteError: it cannot be had.
        StoreError: the local disk is full.
    """
    if its.folder:
        return fingerprint_of_folder((name, each.size) for name, each in described(remote, address).items())
    if its.size < 0 or (its.size > WHOLE and not remote.gives_parts(address)):
        with cache.held(address) as path:
            return fingerprint(path)
    if its.size <= WHOLE:
        content = remote.read(address)
        if len(content) != its.size:
            raise RemoteError(f"{address}: {len(content)} of {its.size} bytes arrived; run the same command again.")
        return fingerprint_of_file(its.size, [content[start : start + n] for start, n in parts_read(its.size)])
    return fingerprint_of_file(its.size, remote.read_parts(address, parts_read(its.size)))


def _entry_name(address: Address, files: dict[str, RemoteFile]) -> str:
    listed = "".join(f"{name}\0{its.size}\0{its.version}\n" for name, its in sorted(files.items()))
    digest = hashlib.sha256(f"{address}\n{listed}".encode(errors="surrogateescape")).hexdigest()[:32]
    return f"{digest}-{sum(its.size for its in files.values())}"


def _remove(entry: Path) -> None:
    """Take an entry away at once, whatever interrupts the removal of its files."""
    gone = entry.with_name(temporary_name(entry.name))
    os.rename(entry, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _locked(entry: Path, how: int) -> io.IOBase:
    """An entry's lock, held until it is closed; closed already where ``LOCK_NB`` found it held by another.

    Whoever removes an entry removes its lock too, so a lock counts only if it still has its name.
    """
    path = _lock_of(entry)
    while True:
        file = open(path, "ab")  # noqa: SIM115  closed by the caller
        try:
            fcntl.flock(file, how)
            there = os.stat(path)
            if os.path.samestat(os.fstat(file.fileno()), there):
                return file
        except BlockingIOError:
            file.close()
            return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()
