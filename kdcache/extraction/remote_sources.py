"""Fingerprints of sources below a remote root, of a listing and of small reads: nothing is fetched for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kdcache.errors import KdcacheError, RemoteError
from kdcache.progress import counted
from kdcache.remote import UNLISTED, Address, Remote, RemoteFile
from kdcache.sources import SourceCache, remote_fingerprint

Answer = TypeVar("Answer")

THREADS = 16  # sources asked for at a time
LISTED = 8  # sources in one folder from which on the folder is listed instead

Signature = tuple[str, int, int]  # path, size and time of change in ns; of an address, a number made of its version


def remote_fingerprints(
    sources: Sequence[str], root: Address, known: Mapping[Signature, str], cache: SourceCache
) -> tuple[dict[str, str | KdcacheError], dict[Signature, str]]:
    """Content fingerprints of sources below a root, the same as of local copies.

    Args:
        sources: paths below the root.
        root: the address.
        known: what is remembered of unchanged files.
        cache: where sources are fetched into of which a server gives no parts.

    Returns:
        source → fingerprint or the error that it gave, and what is new to be remembered.

    Raises:
        RemoteError: the root cannot be reached or read.
        StoreError: the disk of the cache is full.
    """
    remote, refused = Remote(root), None
    try:
        remote.info(root)
    except RemoteError as error:
        if error.again or (error.missing and remote.lists):
            raise
        refused = None if error.missing else error  # of a web server, folders need not answer
    found: dict[str, str | KdcacheError] = {}
    new: dict[Signature, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            infos = _described(remote, root, sources, pool)

            def work(source: str) -> str | KdcacheError:
                its = infos[source]
                if isinstance(its, KdcacheError):
                    return its
                signature = _signature(root.below(source), its)
                if signature is not None and (digest := known.get(signature)) is not None:
                    return digest
                return _or_error(remote, lambda: remote_fingerprint(remote, root.below(source), its, cache))

            for source, answer in zip(
                counted("fingerprints", sources, "sources"), pool.map(work, sources), strict=True
            ):
                found[source] = answer
                its = infos[source]
                if isinstance(answer, str) and isinstance(its, RemoteFile):
                    signature = _signature(root.below(source), its)
                    if signature is not None and signature not in known:
                        new[signature] = answer
        finally:
            pool.shutdown(cancel_futures=True)
    if refused is not None and all(isinstance(answer, KdcacheError) for answer in found.values()):
        raise refused
    return found, new


def _described(
    remote: Remote, root: Address, sources: Sequence[str], pool: ThreadPoolExecutor
) -> dict[str, RemoteFile | KdcacheError]:
    """What is known of each source without reading it; folders that hold many are listed."""
    infos: dict[str, RemoteFile | KdcacheError] = {}
    alone: list[str] = []
    folders: dict[str, list[str]] = {}
    for source in sources:
        folders.setdefault(source.rpartition("/")[0], []).append(source)
    for folder, members in folders.items():
        if len(members) < LISTED or not remote.lists:
            alone += members
            continue
        try:
            listed = remote.files(root.below(folder) if folder else root)
        except RemoteError as error:
            if error.again:
                raise
            alone += members  # a bucket may be read and not listed, or the paths be wrong: each says so
            continue
        for source in members:
            name = source.rpartition("/")[2]
            if (its := listed.get(name)) is None and name.startswith(UNLISTED):
                alone.append(source)
                continue
            infos[source] = its or RemoteError(f"{root}/{source}: nothing there; check the path.", missing=True)
    answers = pool.map(lambda source: _or_error(remote, lambda: remote.info(root.below(source))), alone)
    return infos | dict(zip(alone, answers, strict=True))


def _or_error(remote: Remote, call: Callable[[], Answer]) -> Answer | KdcacheError:
    """What a call gives, or the error that concerns one source alone; ``RemoteError`` where the host is gone."""
    try:
        return call()
    except RemoteError as error:
        if error.again:
            remote.answers(remote.address)
        return error


def _signature(address: Address, its: RemoteFile) -> Signature | None:
    """What names a file's content without reading it; None for folders, and where the server states no version."""
    if its.folder or not its.version:
        return None
    number = int.from_bytes(hashlib.sha256(its.version.encode()).digest()[:7], "big")
    return str(address), its.size, number
