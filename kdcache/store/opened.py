"""Shards that a ``Cache`` has opened: where things lie in them, and which of their bytes have been checked.

A cache may stay open for days while others write into its folder, or put another cache there. What is remembered of a
shard holds for the file that was opened; one that has changed since is opened again, and another in its place refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.store.reader import StreamReader, unseen
from kdcache.store.shard import Shard, Tables, open_shard, replaced, version
from kdcache.store.texts import objects


class OpenedShards:
    """Plain data, no open files: may be pickled, forked and used from several threads.

    Args:
        folder: where the shards lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[str, Shard] = {}
        self._seen: dict[tuple[str, str], bytearray] = {}  # shard, stream → clip-views whose bytes have been checked
        self._frames: dict[tuple[str, str], list[NDArray[np.int32]]] = {}

    def get(self, name: str) -> Shard:
        """A shard as it now lies there.

        Raises:
            StoreError: it is damaged or gone, or another one than before.
        """
        path, before = self._folder / name, self._shards.get(name)
        if before is not None and version(path) == before.version:
            return before
        shard = open_shard(path)[0]
        if before is not None:
            if (shard.digest, shard.size) != (before.digest, before.size):
                raise replaced(path)
            for key in [key for key in list(self._seen) if key[0] == name]:
                del self._seen[key]
        self._shards[name] = shard
        return shard

    def reader(self, shard: Shard, stream: str) -> StreamReader:
        """A reader that checks what has not been read before."""
        key = (shard.path.name, stream)
        if (seen := self._seen.get(key)) is None:
            seen = self._seen[key] = unseen(shard, stream)
        return StreamReader(shard, stream, seen)

    def frames(self, shard: Shard, stream: str) -> list[NDArray[np.int32]]:
        """Source frames of a shard's rows, read-only and kept: training asks clip by clip."""
        kept = (shard.path.name, stream)
        if kept not in self._frames:
            tables = _tables(shard)
            table = tables.get(f"frames/{stream}")
            flat = tables[f"frames/{stream}/data"] if table is None else table
            flat.setflags(write=False)
            self._frames[kept] = (
                list(flat) if table is not None else np.split(flat, tables[f"frames/{stream}/offset"][1:-1])
            )
        return self._frames[kept]


def origins(shard: Shard) -> list[dict[str, Any]]:
    """Provenance of a shard's clips."""
    return objects(shard.path, _tables(shard), "origin")


def _tables(shard: Shard) -> Tables:
    """The tables of a shard that is open, read again."""
    again, tables = open_shard(shard.path)
    if again.digest != shard.digest:
        raise replaced(shard.path)
    return tables
