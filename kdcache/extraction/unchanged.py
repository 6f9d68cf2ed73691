"""``unchanged.txt``: digests of all that some calls looked at which left, or found, nothing to do.

A call whose digest is listed has nothing to do, either: of a million clips none is looked at one by one. What it rests
on is looked at first, as by any call: the manifest, the name, size and time of change of each source, the index, the
list of shards, and what else is remembered. The file may be deleted; a line that is none matches nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import kdcache
from kdcache.errors import KdcacheError
from kdcache.extraction.remote_sources import Signature
from kdcache.extraction.source_memory import FILE as MEMORY
from kdcache.files import atomic, opened, refusal
from kdcache.log import logger
from kdcache.store.commit import shard_files
from kdcache.store.failures import FILE as FAILURES
from kdcache.store.index_digest import listed_digest, sealed_index
from kdcache.store.lock import locked
from kdcache.store.set_aside import SET_ASIDE
from kdcache.streams.base import Stream

FILE = "unchanged.txt"
MOST = 64
"""Calls that are remembered, of other manifests, streams or parts, the latest last."""


_LINE = re.compile(rb"^[0-9a-f]{64}$", re.MULTILINE)


class Unchanged:
    """What one call asks for, and of what.

    Args:
        rows: of the manifest.
        sources: of each row what is read of it.
        streams: what is asked for.
        places: path, size and time of change of each, in the order in which they come first.
        out: the cache.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        sources: pd.Series[str],
        streams: Sequence[Stream],
        places: Iterable[Signature],
        out: Path,
    ) -> None:
        self._out = out
        ids = rows["clip_id"].tolist()
        sha = hashlib.sha256(kdcache.__version__.encode())
        for stream in streams:
            alike = [one.digest for one in stream.alike]
            _add(sha, [stream.name, stream.digest, *alike])
            _add(sha, itertools.islice(stream.digests_of(ids), len(ids)))
        for name, column in rows.items():
            _add(sha, [str(name), str(column.dtype)])
            _add(sha, map(repr, column.tolist()))
        _add(sha, map(repr, sources.tolist()))
        _add(sha, map(repr, places))
        self._asked = sha.hexdigest()
        self._aside = _of_file(out / SET_ASIDE)
        self._before = self._digest()

    def found(self) -> str | None:
        """SHA-256 of the index of a cache where a call as this one has found nothing to do; ``None``: look."""
        return self._before[1] if self._before is not None and self._before[0] in _listed(self._out) else None

    def note(self, index: str | None = None) -> None:
        """There was nothing to do, unless the cache has changed since this was made; or there is nothing left to do,
        since the call itself has made the index of this SHA-256. A disk that refuses loses only a memory."""
        now = self._digest()
        as_it_was = now == self._before if index is None else now is not None and now[1] == index
        if now is None or not as_it_was or _of_file(self._out / SET_ASIDE) != self._aside:
            return
        try:
            with locked(self._out):
                lines = [line for line in _listed(self._out) if line != now[0]]
                with atomic(self._out / FILE) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in [*lines, now[0]][-MOST:]), "ascii")
        except OSError as error:
            logger.debug("%s: not written (%s)", self._out / FILE, refusal(error)[0])

    def _digest(self) -> tuple[str, str] | None:
        """Of what is asked for and of the cache as it is; that of the index; ``None`` for an index without its own."""
        sha = hashlib.sha256(self._asked.encode())
        try:
            if not listed_digest(self._out):
                return None
            index = sealed_index(self._out)[1]
            _add(sha, [index, *(path.name for path in shard_files(self._out))])
            _add(sha, [_of_file(self._out / name) for name in (MEMORY, FAILURES, SET_ASIDE)])
        except KdcacheError:  # what is wrong is said by who needs the file
            return None
        return (sha.hexdigest(), index) if index else None


def _add(sha: Any, texts: Iterable[str]) -> None:
    """One list, told apart from what comes before and after."""
    joined = "\n".join(texts).encode(errors="surrogatepass")
    sha.update(f"\n{len(joined)}\n".encode())
    sha.update(joined)


def _of_file(path: Path) -> str:
    """SHA-256 of a file, empty where there is none."""
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _listed(out: Path) -> list[str]:
    try:
        with opened(out / FILE) as file:
            return [line.decode() for line in _LINE.findall(file.read(65 * (MOST + 1)))]
    except OSError:
        return []  # what is not listed is looked at
