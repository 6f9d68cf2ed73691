"""``sources.csv``: what sources were when they were last looked at, so that an unchanged one is not read again.

A fingerprint names a source by samples of it, in a fraction of a millisecond. Beside it stands a digest of all its
bytes, taken by the worker that decodes it, when they are in memory anyway. Where a source's time of change is another
than remembered, all its bytes are hashed again: other bytes under a fingerprint that is known get another one.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from kdcache.csv_text import BrokenTable, check_of, read_columns, table_text
from kdcache.errors import KdcacheError, RemoteError, SourceError
from kdcache.extraction.remote_sources import Signature, remote_fingerprints
from kdcache.files import atomic, opened, refusal
from kdcache.log import logger
from kdcache.progress import counted
from kdcache.roots import Roots
from kdcache.seals import digest_of_file
from kdcache.sources import Finder, SourceCache, content_digest, fingerprint, signature
from kdcache.store.lock import locked

FILE = "sources.csv"
DIGEST = f"{FILE}.sha256"
AT_ONCE = 32
"""Sources between looks at the clock."""
_NEEDED = ("path", "size", "mtime_ns", "fingerprint")
_COLUMNS = (*_NEEDED, "content", "check")


class Look(NamedTuple):
    """What a source was."""

    path: str
    size: int
    changed: int
    """Of a file its time of change in ns; of a folder a digest of the names, sizes and times of its files."""
    fingerprint: str
    content: str = ""
    """Digest of all its bytes; empty where it was never taken, as by version 0.1."""

    @property
    def place(self) -> Signature:
        """What must be as it was for the rest to hold."""
        return self.path, self.size, self.changed


def places_now(sources: Sequence[str], roots: Roots) -> dict[str, Signature]:
    """Source → its path, size and time of change, of plain files below the only root; others are left out."""
    found: dict[str, Signature] = {}
    if len(roots.folders) == 1 and not roots.addresses:
        look = Finder(roots).look
        for source in counted("sources", sources, "sources", every=AT_ONCE):
            if (place := look(source)) is not None:
                found[source] = place
    return found


def fingerprint_sources(
    sources: Sequence[str],
    roots: Roots,
    memory: Path,
    places: Mapping[str, Signature] = MappingProxyType({}),
    cache: SourceCache | None = None,
    *,
    remember: bool = True,
    rehash: bool = False,
) -> tuple[dict[str, str | KdcacheError], dict[str, str]]:
    """Content fingerprints of all sources, remembering those of files whose size and time of change are as they were.

    Args:
        sources: paths as in the manifest.
        roots: what they are relative to.
        memory: CSV file that keeps a row a source from call to call; of an address, ``mtime_ns`` is a number made of
            its version (``kdcache.extraction.remote_sources``).
        places: those that were just looked at, see ``places_now``.
        cache: where sources of remote roots are fetched into.
        remember: write what is new into the memory.
        rehash: read every source of this machine from end to end, whatever is remembered of it.

    Returns:
        source → fingerprint or the error that it gave, and source → absolute path or address.

    Raises:
        RemoteError: a remote root cannot be reached or read.
    """
    known = Memory.load(memory)
    local = sources if not roots.addresses else [s for s in sources if roots.folders or os.path.isabs(s)]
    found, paths, new = _local(local, roots, places, known, rehash)
    versions = known.versions() if roots.addresses else {}
    for address in roots.addresses:
        relative = [source for source in sources if not os.path.isabs(source)]
        theirs, more = remote_fingerprints(relative, address, versions, cache or SourceCache.of(None))
        new |= {place: Look(*place, fingerprint) for place, fingerprint in more.items()}
        for source, answer in theirs.items():
            here = found.get(source)
            if here is None or _missing(here, source, roots):
                if here is None or isinstance(answer, str):
                    found[source], paths[source] = answer, f"{address}/{source}"
            elif isinstance(answer, RemoteError) and answer.missing:
                continue
            elif isinstance(here, str) and isinstance(answer, str) and here != answer:
                one, other = paths[source], f"{address}/{source}"
                found[source] = SourceError(
                    f"{source}: {one} and {other} differ; give one of these roots alone, or rename one."
                )
            elif isinstance(answer, KdcacheError):
                found[source] = answer
    if remember and any(known.look(place) != look for place, look in new.items()):
        remember_looks(memory, new)
    return found, paths


def _missing(answer: str | KdcacheError, source: str, roots: Roots) -> bool:
    """Whether an answer says that a source is in none of the roots asked so far."""
    if isinstance(answer, RemoteError):
        return answer.missing
    return isinstance(answer, KdcacheError) and not any(os.path.exists(folder / source) for folder in roots.folders)


def _local(
    sources: Sequence[str], roots: Roots, places: Mapping[str, Signature], known: Memory, rehash: bool
) -> tuple[dict[str, str | KdcacheError], dict[str, str], dict[Signature, Look]]:
    """Fingerprints or errors, and paths, of sources on this machine, and what is new."""
    found: dict[str, str | KdcacheError] = {}
    paths: dict[str, str] = {}
    fresh: dict[str, Look] = {}
    remembered = _nothing if rehash else known.fingerprint
    for source, place in places.items():
        if (before := remembered(place)) is not None:
            found[source], paths[source] = before, place[0]
    left = [source for source in sources if source not in found] if found else sources
    find = Finder(roots).find
    for source in counted("fingerprints", left, "sources", every=AT_ONCE):
        try:
            path, state = find(source)
            paths[source] = path
            place = (path, *signature(path)) if state is None else (path, state.st_size, state.st_mtime_ns)
            if (before := remembered(place)) is not None:
                found[source] = before
            else:
                fresh[source] = Look(*place, fingerprint(path))
        except FileNotFoundError:
            found[source] = SourceError(
                f"{paths[source]}: no such file; put it there or remove its rows from the manifest."
            )
        except KdcacheError as error:
            found[source] = error
        except OSError as error:
            found[source] = SourceError(f"{paths.get(source, source)}: cannot be read ({error.strerror}); check it.")
    new: dict[Signature, Look] = {}
    for source, look in _told_apart(fresh, known.looks(), rehash) if fresh else ():
        found[source] = look if isinstance(look, KdcacheError) else look.fingerprint
        if isinstance(look, Look):
            new[look.place] = look
    return found, paths, new


def _nothing(place: Signature) -> None:
    """What is remembered of a source where everything is read again."""


def _told_apart(
    fresh: Mapping[str, Look], known: Iterable[Look], rehash: bool
) -> Iterable[tuple[str, Look | SourceError]]:
    """Sources that were not remembered, with fingerprints that differ wherever their bytes do from what is known."""
    first: dict[str, str] = {}  # fingerprint → digest of the content that has it
    seen: set[str] = set()
    moved: dict[tuple[int, int], Look] = {}
    for look in known:
        seen.add(look.fingerprint)
        if look.content:
            first.setdefault(look.fingerprint, look.content)
            moved[look.size, look.changed] = look
    paths = {(look.path, look.fingerprint) for look in fresh.values()}
    shared = Counter(one for _, one in paths)
    for source, look in fresh.items():
        sampled = look.fingerprint
        before = moved.get((look.size, look.changed))
        alike = before is not None and before.fingerprint in (sampled, _other(sampled, before.content))
        if before is not None and alike and not rehash and Path(look.path).is_file():  # moved; folders need more
            yield source, look._replace(fingerprint=before.fingerprint, content=before.content)
            continue
        if not (rehash or sampled in seen or shared[sampled] > 1):
            yield source, look
            continue
        try:
            content = content_digest(look.path)
        except SourceError as error:
            yield source, error
            continue
        if first.setdefault(sampled, content) != content:
            logger.debug("%s: other bytes than those known by %s", look.path, sampled)
            look = look._replace(fingerprint=_other(sampled, content))
        yield source, look._replace(content=content)


def _other(sampled: str, content: str) -> str:
    """Fingerprint of a content whose samples are those of another."""
    return hashlib.sha256(f"{sampled}|{content}".encode()).hexdigest()[:32]


class Memory:
    """What is remembered of sources, in columns: of a million no object is made but the key of each."""

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        self._columns = columns  # those of ``Look``
        path, size, changed, self._fingerprints = columns[:4]
        self._rows = dict(zip(zip(path, size, changed, strict=True), range(len(path)), strict=True))

    @classmethod
    def load(cls, memory: Path) -> Self:
        """What a file holds; of one that cannot be read nothing, for everything in it can be had again."""
        try:
            columns = read_columns(memory, _NEEDED)
            none = [""] * len(columns["path"])
            path, size, changed, one = (columns[name] for name in _NEEDED)
            found: list[list[Any]] = [
                path,
                list(map(int, size)),
                list(map(int, changed)),
                one,
                columns.get("content", none),
            ]
        except FileNotFoundError:
            return cls([[], [], [], [], []])
        except (BrokenTable, ValueError) as error:
            logger.warning("%s: %s; it is written anew", memory, error)
            return cls([[], [], [], [], []])
        if "check" in columns and not _is_whole(memory):
            checks = zip(columns["check"], itertools.starmap(Look, zip(*found, strict=True)), strict=True)
            right = [not check or check == check_of(look) for check, look in checks]
            found = [list(itertools.compress(column, right)) for column in found]
        return cls(found)

    def fingerprint(self, place: Signature) -> str | None:
        """That of a source which is as it was; ``None`` where it is not known so."""
        row = self._rows.get(place)
        return None if row is None else self._fingerprints[row]

    def look(self, place: Signature) -> Look | None:
        """All that is known of such a source."""
        row = self._rows.get(place)
        return None if row is None else Look(*(column[row] for column in self._columns))

    def looks(self) -> Iterator[Look]:
        """Everything remembered."""
        return (Look(*(column[row] for column in self._columns)) for row in self._rows.values())

    def versions(self) -> dict[Signature, str]:
        """Fingerprints by what must be as it was."""
        return {place: self._fingerprints[row] for place, row in self._rows.items()}


def load_memory(memory: Path) -> dict[Signature, Look]:
    """See ``Memory.load``."""
    return {look.place: look for look in Memory.load(memory).looks()}


def _is_whole(memory: Path) -> bool:
    """Whether a memory has the bytes that were written, so that its rows need not be checked one by one."""
    try:
        with opened(memory.with_name(DIGEST)) as file:
            return file.read(65) == f"{digest_of_file(memory)}\n".encode()
    except (OSError, KdcacheError):  # of version 0.1, or killed between the two files
        return False


def without_content(known: Iterable[Look], paths: Iterable[str]) -> frozenset[str]:
    """Of these sources, those whose bytes were never hashed as they are now remembered."""
    return frozenset(paths) - {look.path for look in known if look.content}


def looks_of(known: Iterable[Look]) -> dict[tuple[str, str], frozenset[tuple[int, int]]]:
    """Path and fingerprint of sources → the sizes and times of change under which they had it."""
    found: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for look in known:
        found.setdefault((look.path, look.fingerprint), set()).add((look.size, look.changed))
    return {which: frozenset(its) for which, its in found.items()}


def add_contents(memory: Path, contents: Mapping[Signature, str]) -> None:
    """Remember digests of sources; those that have changed since they were fingerprinted are left out."""
    known = load_memory(memory)
    new = {place: known[place]._replace(content=content) for place, content in contents.items() if place in known}
    if any(known[place] != look for place, look in new.items()):
        remember_looks(memory, new)


def remember_looks(memory: Path, new: Mapping[Signature, Look]) -> None:
    """Write new rows, beside those that others may have written meanwhile; a disk that refuses loses only a memory."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with locked(memory.parent):
            looks = {**load_memory(memory), **new}.values()
            rows = [(*map(str, look), check_of(look)) for look in looks]
            with atomic(memory) as temporary:
                text = table_text(_COLUMNS, rows)
                temporary.write_text(text, encoding="utf-8", newline="", errors="backslashreplace")
            with atomic(memory.with_name(DIGEST)) as temporary:
                temporary.write_text(f"{digest_of_file(memory)}\n", encoding="ascii")
    except OSError as error:
        logger.warning("%s: not written (%s), so the next call reads sources again", memory, refusal(error)[0])
