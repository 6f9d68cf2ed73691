"""``manifest.csv.sha256``: what the index's bytes are when kdcache has written them, as ``sha256sum -c`` reads it.

While the index is replaced the file lists the old and the new digest, so that a writer may be killed at any moment.
Caches of version 0.1 have none, and nothing is checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from kdcache.errors import StoreError
from kdcache.files import atomic

INDEX = "manifest.csv"
DIGEST = f"{INDEX}.sha256"

_LINE = re.compile(rb"([0-9a-f]{64})  manifest\.csv")
_TRIES = 3  # a reader may meet a writer between its two looks


def check_index(folder: Path) -> None:
    """Hold the index against its digest; see ``sealed_index``."""
    sealed_index(folder)


def sealed_index(folder: Path) -> tuple[bytes, str]:
    """The bytes of the index, held against its digest, and this, empty where there is none.

    Raises:
        StoreError: it is not what kdcache wrote; says how to keep it and how to rebuild it.
    """
    index, listed, fits = matching_pair(lambda name: _read(folder / name))
    if fits:
        return index or b"", hashlib.sha256(index).hexdigest() if index and listed is not None else ""
    raise StoreError(
        f"{folder / INDEX}: has changed since kdcache wrote it ({DIGEST}): if you edited it, `kdcache reindex {folder} "
        f"--keep-edits` takes it as it is; if not, `kdcache reindex {folder}` rebuilds it from the shards."
    )


def listed_digest(folder: Path) -> str:
    """The digest that the index should have; empty where none is listed, or the index is being replaced."""
    listed = _digests(_read(folder / DIGEST) or b"")
    return listed[0] if len(listed) == 1 else ""


def matching_pair(read: Callable[[str], bytes | None]) -> tuple[bytes | None, bytes | None, bool]:
    """An index, the list of its digests, and whether they fit; ``read`` gives a file by name, ``None`` where it is not.

    An index without a list, as in caches of version 0.1, fits.
    """
    for _ in range(_TRIES):
        listed, index = read(DIGEST), read(INDEX)
        if listed is None or index is None or hashlib.sha256(index).hexdigest() in _digests(listed):
            return index, listed, True
    return index, listed, False


def replace_index(folder: Path, data: bytes) -> None:
    """Replace the index and its digest; ``OSError`` when the disk refuses, and the old index stands."""
    listed, old = (_read(path) if path.is_file() else None for path in (folder / DIGEST, folder / INDEX))
    new = hashlib.sha256(data).hexdigest()
    known = _digests(listed) if listed is not None else [] if old is None else [hashlib.sha256(old).hexdigest()]
    _list(folder, [new, *known])
    with atomic(folder / INDEX) as temporary:
        temporary.write_bytes(data)
    _list(folder, [new])


def _read(path: Path) -> bytes | None:
    if not path.exists():
        return None
    if not path.is_file():  # a pipe would keep its reader waiting for ever
        raise StoreError(f"{path}: is not a regular file: remove it, then run `kdcache reindex {path.parent}`.")
    return path.read_bytes()


def _digests(listed: bytes) -> list[str]:
    """The digests in a list; a line that is none cannot match anything."""
    return [found[1].decode() for line in listed.splitlines() if (found := _LINE.fullmatch(line))]


def _list(folder: Path, digests: Iterable[str]) -> None:
    with atomic(folder / DIGEST) as temporary:
        temporary.write_text("".join(f"{digest}  {INDEX}\n" for digest in dict.fromkeys(digests)), encoding="ascii")
