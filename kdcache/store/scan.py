"""What the shards themselves say: enough to find every cached array and to rebuild the index."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.errors import StoreError
from kdcache.manifest import REQUIRED
from kdcache.store.commit import shard_files
from kdcache.store.index import Places, load_index, save_index
from kdcache.store.indexed import PARTS, location_columns
from kdcache.store.layout import StrPath
from kdcache.store.lock import locked
from kdcache.store.set_aside import load_set_aside
from kdcache.store.shard import Shard, Tables, open_shard
from kdcache.store.shard_list import ShardSummary, save_list
from kdcache.store.texts import manifest_rows, objects, strings


def open_all(folder: Path, names: Sequence[str] | None = None) -> Iterator[tuple[Shard, Tables, set[tuple[str, int]]]]:
    """Every shard in order, or these, with its tables and the (stream, row) that were set aside."""
    aside: dict[str, set[tuple[str, int]]] = {}
    for damage in load_set_aside(folder):
        aside.setdefault(damage.shard, set()).add((damage.stream, damage.row))
    for path in shard_files(folder) if names is None else [folder / name for name in names]:
        shard, tables = open_shard(path)
        yield shard, tables, aside.get(path.name, set())


def scan(folder: StrPath, streams: Sequence[str] | None = None) -> Places:
    """Find everything cached, from the shards alone: stream → key → (shard, row, digest).

    Where a key is there twice, the later shard counts.

    Raises:
        StoreError: a damaged shard; ``verify --repair`` sets it aside.
    """
    places: Places = {s: {} for s in streams or ()}
    if not Path(folder).is_dir():
        return places
    for shard, tables, aside in open_all(Path(folder)):
        if streams is None:
            places = {stream: {} for stream in shard.streams} | places
        add_places(places, shard, tables, aside)
    return places


def add_places(places: Places, shard: Shard, tables: Tables, aside: Collection[tuple[str, int]]) -> None:
    """Add what a shard holds of the streams that ``places`` has, but for the (stream, row) that were set aside."""
    for stream in shard.streams.keys() & places.keys():
        keys, digests = (strings(shard.path, tables, f"{t}/{stream}") for t in ("key", "digest"))
        for row, (key, digest) in enumerate(zip(keys, digests, strict=True)):
            if (stream, row) not in aside:
                places[stream][key] = (shard.path.name, row, digest)


class Origins:
    """Provenance of cached arrays, as shards keep it; a shard is opened when it is first asked for."""

    def __init__(self, folder: StrPath) -> None:
        self._folder = Path(folder)
        self._of: dict[str, list[dict[str, Any]]] = {}

    def at(self, shard: str, row: int) -> dict[str, Any]:
        """Source fingerprint, decoder, size of frames … of one row of a shard."""
        if shard not in self._of:
            path = self._folder / shard
            self._of[shard] = objects(path, open_shard(path)[1], "origin")
        return self._of[shard][row]


def reindex(folder: StrPath, keep_edits: bool = False) -> pd.DataFrame:
    """Rebuild ``manifest.csv`` from the shards alone, or with ``keep_edits`` take it as someone has edited it.

    Rows come in the order of shards; where a clip is there twice, the later shard counts. What no shard holds (clips
    that failed, rows edited since) comes back with the next ``extract``. ``shards.json`` is made anew, too.

    Returns:
        The rows written.

    Raises:
        StoreError: no shard in the folder, or a damaged one.
        ManifestError: edits after which ``manifest.csv`` is no manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; name one that `kdcache extract` has filled.")
    with locked(folder):
        if not keep_edits:
            return rebuild(folder)
        index = load_index(folder, edited=True)
        save_index(index, folder)
        return index


def rebuild(folder: Path) -> pd.DataFrame:
    """``reindex`` for those who hold the folder's lock."""
    rows: dict[str, dict[str, Any]] = {}
    spans: dict[str, tuple[Any, ...]] = {}
    streams: set[str] = set()
    listed: dict[str, ShardSummary] = {}
    for shard, tables, aside in open_all(folder):
        streams |= shard.streams.keys()
        listed[shard.path.name] = ShardSummary.of(shard)
        keys = {s: strings(shard.path, tables, f"key/{s}") for s in shard.streams}
        digests = {s: strings(shard.path, tables, f"digest/{s}") for s in shard.streams}
        for row, clip in enumerate(manifest_rows(shard.path, tables)):
            for column in location_columns(list(clip)):  # of an index that was extracted as a manifest
                del clip[column]
            name, span = clip["clip_id"], span_of(clip)
            if spans.get(name, span) != span:  # its span has changed since: earlier shards hold another one
                del rows[name]
            spans[name] = span
            rows.setdefault(name, {}).update(clip)
            for s in shard.streams:
                if (s, row) not in aside:
                    entry = (shard.path.name, row, keys[s][row], digests[s][row])
                    rows[name] |= {f"{s}:{part}": value for part, value in zip(PARTS, entry, strict=True)}
    if not rows:
        raise StoreError(f"{folder}: no shards to index; name a folder that `kdcache extract` has filled.")
    places = [f"{s}:{part}" for s in sorted(streams) for part in PARTS]
    columns = dict.fromkeys([*REQUIRED, *(c for row in rows.values() for c in row if c not in places), *places])
    index = pd.DataFrame({c: pd.Series([row.get(c) for row in rows.values()], dtype=object) for c in columns})
    save_index(index, folder)
    save_list(folder, listed)
    return index


def span_of(clip: dict[str, Any]) -> tuple[Any, ...]:
    """What a stored manifest row cuts out: (source, start, stop), ``None`` for the source's own start or end."""
    return clip.get("source"), clip.get("start_s"), clip.get("stop_s")
