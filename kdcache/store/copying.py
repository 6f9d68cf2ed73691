"""``kdcache copy``: a cache to another folder, to a bucket, or back, with the digest of every file held at both ends.

``copied.json`` at the destination lists, of each file, its size, its SHA-256, and its version at the source and at the
destination (times of change, ETags), by which a later copy knows what need not be read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.errors import StoreError
from kdcache.progress import progress
from kdcache.store.commit import QUARANTINED, clean
from kdcache.store.index_digest import DIGEST, INDEX, matching_pair
from kdcache.store.places import Folder, Listed, Place, digest_of, file_digest, place

RECORD = "copied.json"
SOURCES = ("sources.csv", "sources.csv.sha256", "unchanged.txt")  # by the paths of one machine
THREADS = 4  # files on their way at a time
SAVE_S = 20.0  # between two writings of the record

_SHARD = re.compile(r"shard-\d{5,}\.h5")


_OTHER = f"its bytes are not those that {RECORD} beside it lists; copy it there again, or remove {RECORD}."


class Known(NamedTuple):
    """What the record says of a file."""

    size: int
    sha256: str
    source: str
    """Version at the source when it was copied."""
    here: str
    """Version at the destination after that."""


@dataclass
class CopyReport:
    """What one call of ``copy`` did."""

    source: str
    target: str
    files: int = 0
    sent: list[str] = field(default_factory=list)
    bytes: int = 0
    """Of those sent."""
    verified: int = 0
    """Files hashed at both ends by ``verify``."""
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{self.target}: {self.files} files, {len(self.sent)} of them sent ({self.bytes:,} bytes)"
        return text + (f", {self.verified} hashed at both ends" if self.verified else "")


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    verify: bool = False,
    bar: bool = True,
) -> CopyReport:
    """Copy a cache: shards, index and the files beside them. Only what is missing or differs is sent.

    The index is sent last, so that what it names is there. A file appears at the destination whole or not at all. An
    interrupted copy goes on where it was.

    Args:
        source: the cache: a folder, or an address such as ``s3://bucket/prefix``.
        target: where to; made where it is not there.
        verify: hash every file at both ends again, also those that were copied before.
        bar: show progress in bytes.

    Raises:
        StoreError: ``source`` is no cache, ``target`` holds another one, or a file arrived other than it was sent.
        RemoteError, OptionError: an address that cannot be reached, or not be used.
    """
    began = time.monotonic()
    here, there = place(source), place(target)
    if str(here).rstrip("/") == str(there).rstrip("/"):
        raise StoreError(f"{here}: a cache is not copied onto itself; name another place.")
    report = CopyReport(str(here), str(there))
    index, listed, _ = matching_pair(here.read)  # before the shards are listed: all that it names are among them
    files = {name: its for name, its in here.files().items() if _belongs(name)}
    if index is None or not files:
        raise StoreError(f"{here}: no cache (it has no {INDEX}); name a folder that `kdcache extract` has filled.")
    if out := next((name for name in files if name.startswith("/") or ".." in name.split("/")), None):
        raise StoreError(f"{here}: the name {out!r} there leads out of the cache; rename or remove it.")
    job = _Copy(here, there, files, verify)
    job.refuse_another_cache()
    if isinstance(there, Folder):
        for folder in (there.path, *there.path.glob("*/")):
            clean(folder)  # what a copy that was killed had begun to write
    report.files = len(files)
    with progress("copy", sum(its.size for its in files.values()), "B", shown=bar) as shown:
        with ThreadPoolExecutor(THREADS) as pool:
            work = {pool.submit(job.one, name): name for name in sorted(files) if name not in (INDEX, DIGEST)}
            try:
                for done in as_completed(work):
                    job.note(report, work[done], done.result())
                    shown.update(files[work[done]].size)
            finally:
                pool.shutdown(cancel_futures=True)
                job.save_record()
        if listed is not None:
            job.note(report, DIGEST, job.bytes(DIGEST, listed))
        job.note(report, INDEX, job.bytes(INDEX, index))
        job.save_record()
    report.seconds = time.monotonic() - began
    return report


def _belongs(name: str) -> bool:
    return name not in (RECORD, *SOURCES) and not name.endswith(QUARANTINED)


class _Copy:
    """One copy: what is to be sent, and the record of what has been."""

    def __init__(self, here: Place, there: Place, files: dict[str, Listed], verify: bool) -> None:
        self._here, self._there, self._files, self._verify = here, there, files, verify
        self._found = there.files()
        self._record = _read_record(there)
        self._listed = _read_record(here)  # where the source is a copy, too
        self._saved = time.monotonic()

    def refuse_another_cache(self) -> None:
        """``StoreError`` where the destination holds shards that are not of this cache."""
        for name in sorted(filter(_SHARD.fullmatch, self._found)):
            known, found = self._record.get(name), self._found[name]
            intact = known is not None and (known.size, known.here) == found
            if name not in self._files:
                ours = intact
            elif intact and known is not None:
                ours = known.sha256 == self._digest(name)
            else:  # a copy that was interrupted before it was recorded, unless it was recorded and has been damaged
                size = self._files[name].size
                ours = known is not None and known.sha256 == self._digest(name)
                ours = ours or (found.size == size and digest_of(self._there, name, size) == self._digest(name))
                if ours and known is None:
                    self._record[name] = Known(size, self._digest(name), self._files[name].version, found.version)
            if not ours:
                raise StoreError(
                    f"{self._there}: {name} there is not of {self._here}; choose an empty place, or remove it."
                )

    def one(self, name: str) -> Known | None:
        """Send a file if need be; None where it was there."""
        its, known, found = self._files[name], self._record.get(name), self._found.get(name)
        if known is not None and found is not None and (known.size, known.here) == found:
            same = self._digest(name) == known.sha256
            if same and (not self._verify or digest_of(self._there, name, its.size) == known.sha256):
                return None
        ready = self._here.local(name)
        digest = "" if ready is None else file_digest(ready)

        def make(path: Path) -> None:
            nonlocal digest
            self._here.fetch(name, path, its.size)
            arrived = file_digest(path)
            if arrived != (digest or self._stated(name) or arrived):
                raise StoreError(f"{self._here}/{name}: {_OTHER}")
            digest = arrived

        there = self._there.take(name, make, ready)
        if self._verify and digest_of(self._there, name, there.size) != digest:
            raise StoreError(f"{self._there}/{name}: differs from what was sent; check the disk and copy again.")
        return Known(there.size, digest, its.version, there.version)

    def bytes(self, name: str, content: bytes) -> Known | None:
        """Send a file that was read before all others."""
        digest = hashlib.sha256(content).hexdigest()
        if digest != (self._stated(name) or digest):
            raise StoreError(f"{self._here}/{name}: {_OTHER}")
        known, found = self._record.get(name), self._found.get(name)
        same = known is not None and known.sha256 == digest and (known.size, known.here) == found
        if same and (not self._verify or digest_of(self._there, name, len(content)) == digest):
            return None
        there = self._there.take(name, lambda path: _write(path, content))
        return Known(there.size, digest, "", there.version)

    def note(self, report: CopyReport, name: str, sent: Known | None) -> None:
        """Count what was done with a file, and record it now and then."""
        report.verified += self._verify
        if sent is None:
            return
        report.sent.append(name)
        report.bytes += sent.size
        self._record[name] = sent
        if time.monotonic() - self._saved >= SAVE_S:
            self.save_record()

    def save_record(self) -> None:
        """Write ``copied.json`` at the destination."""
        rows = {name: known._asdict() for name, known in sorted(self._record.items())}
        text = json.dumps({"format": "kdcache copy 1", "files": rows}, indent=1)
        self._there.take(RECORD, lambda path: _write(path, text.encode()))
        self._saved = time.monotonic()

    def _stated(self, name: str) -> str | None:
        """Digest that a record beside the source states of a file; shards never change, others may since have."""
        its, listed = self._files.get(name), self._listed.get(name)
        if listed is None or (its != (listed.size, listed.here) and not _SHARD.fullmatch(name)):
            return None
        return listed.sha256

    def _digest(self, name: str) -> str:
        """Of a file at the source; it is read only where nothing says that it is as it was."""
        its, known, listed = self._files[name], self._record.get(name), self._listed.get(name)
        if not self._verify:
            if known is not None and (known.size, known.source) == its:
                return known.sha256
            if listed is not None and (listed.size, listed.here) == its:
                return listed.sha256
        return digest_of(self._here, name, its.size)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _read_record(where: Place) -> dict[str, Known]:
    text = where.read(RECORD)
    if text is None:
        return {}
    try:
        rows: dict[str, Any] = json.loads(text)["files"]
        return {name: Known(**row) for name, row in rows.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"{where}/{RECORD}: damaged ({error}); remove it, and files are compared again.") from error
