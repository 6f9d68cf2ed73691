"""``sources.csv``: what sources were when they were last looked at, so that an unchanged file is not read again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdcache.csv_text import BrokenTable, read_table, table_text
from kdcache.errors import KdcacheError, RemoteError, SourceError
from kdcache.extraction.remote_sources import Signature, remote_fingerprints
from kdcache.files import atomic
from kdcache.log import logger
from kdcache.progress import counted
from kdcache.roots import Roots
from kdcache.sources import SourceCache, find, fingerprint
from kdcache.store.lock import locked

FILE = "sources.csv"
COLUMNS = ("path", "size", "mtime_ns", "fingerprint")


def fingerprint_sources(
    sources: Sequence[str], roots: Roots, memory: Path, cache: SourceCache | None = None, *, remember: bool = True
) -> tuple[dict[str, str | KdcacheError], dict[str, str]]:
    """Content fingerprints of all sources, remembering those of files whose size and time of change are as they were.

    Args:
        sources: paths as in the manifest.
        roots: what they are relative to.
        memory: CSV file that keeps (path, size, mtime_ns, fingerprint) from call to call; of an address, ``mtime_ns``
            is a number made of its version (``kdcache.extraction.remote_sources``).
        cache: where sources of remote roots are fetched into.
        remember: write what is new into it.

    Returns:
        source → fingerprint or the error that it gave, and source → absolute path or address.

    Raises:
        RemoteError: a remote root cannot be reached or read.
    """
    known = load_memory(memory)
    local = sources if not roots.addresses else [s for s in sources if roots.folders or os.path.isabs(s)]
    found, paths, new = _local(local, roots, known)
    for address in roots.addresses:
        relative = [source for source in sources if not os.path.isabs(source)]
        theirs, more = remote_fingerprints(relative, address, known, cache or SourceCache.of(None))
        new |= more
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
    if remember and new:
        _add(memory, new)
    return found, paths


def _missing(answer: str | KdcacheError, source: str, roots: Roots) -> bool:
    """Whether an answer says that a source is in none of the roots asked so far."""
    if isinstance(answer, RemoteError):
        return answer.missing
    return isinstance(answer, KdcacheError) and not any(os.path.exists(folder / source) for folder in roots.folders)


def _local(
    sources: Sequence[str], roots: Roots, known: Mapping[Signature, str]
) -> tuple[dict[str, str | KdcacheError], dict[str, str], dict[Signature, str]]:
    """Fingerprints or errors, and paths, of sources on this machine, and what is new."""
    found: dict[str, str | KdcacheError] = {}
    paths: dict[str, str] = {}
    new: dict[Signature, str] = {}
    for source in counted("fingerprints", sources, "sources"):
        try:
            path = find(roots, source)
            paths[source] = str(path)
            stat = os.stat(path)
            signature = (str(path), stat.st_size, stat.st_mtime_ns)
            digest = known.get(signature) if path.is_file() else None
            found[source] = digest or fingerprint(path)
            if path.is_file() and digest is None:
                new[signature] = str(found[source])
        except FileNotFoundError:
            found[source] = SourceError(
                f"{paths[source]}: no such file; put it there or remove its rows from the manifest."
            )
        except KdcacheError as error:
            found[source] = error
        except OSError as error:
            found[source] = SourceError(f"{paths.get(source, source)}: cannot be read ({error.strerror}); check it.")
    return found, paths, new


def load_memory(memory: Path) -> dict[Signature, str]:
    """What is remembered; of a file that cannot be read, nothing, for everything in it can be had again."""
    try:
        rows = read_table(memory, COLUMNS)
        return {(row["path"], int(row["size"]), int(row["mtime_ns"])): row["fingerprint"] for row in rows}
    except FileNotFoundError:
        return {}
    except (BrokenTable, ValueError) as error:
        logger.warning("%s: %s; it is written anew", memory, error)
        return {}


def _add(memory: Path, new: dict[Signature, str]) -> None:
    """Write new rows, beside those that others may have written meanwhile; a disk that refuses loses only a memory."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with locked(memory.parent):
            rows = load_memory(memory) | new
            with atomic(memory) as temporary:
                text = table_text(COLUMNS, [(path, str(size), str(time), f) for (path, size, time), f in rows.items()])
                temporary.write_text(text, encoding="utf-8", newline="", errors="backslashreplace")
    except OSError as error:
        logger.warning("%s: not written (%s), so the next call reads sources again", memory, error.strerror or error)
