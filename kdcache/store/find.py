"""Everything cached, without opening the shards that the index accounts for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kdcache.store.commit import shard_files
from kdcache.store.index import Places
from kdcache.store.indexed import Indexed, Place, PlacesByKey
from kdcache.store.lock import locked
from kdcache.store.scan import add_places, open_all
from kdcache.store.shard_list import ShardSummary, add_to_list, listed_shards


class CachedPlaces(Mapping[str, Place]):
    """Key → where the array of a stream lies: as the index says, else as a shard does that it does not account for."""

    def __init__(self, indexed: Mapping[str, Place], beyond: Mapping[str, Place]) -> None:
        self._indexed, self._beyond = indexed, beyond

    def __getitem__(self, key: str) -> Place:
        place = self._indexed.get(key)
        return self._beyond[key] if place is None else place

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._indexed), **dict.fromkeys(self._beyond)})

    def __len__(self) -> int:
        return len({**dict.fromkeys(self._indexed), **dict.fromkeys(self._beyond)})

    def __bool__(self) -> bool:
        return bool(self._indexed) or bool(self._beyond)


def indexed_places(index: Indexed | None, streams: Sequence[str]) -> dict[str, Mapping[str, Place]]:
    """Of each stream what the index says is cached: key → place."""
    if index is None:
        return {stream: {} for stream in streams}
    return {stream: PlacesByKey(index, stream) if stream in index.streams else {} for stream in streams}


def places_beyond(folder: Path, index: Indexed | None, streams: Sequence[str], *, note: bool = True) -> Places:
    """What shards hold of which the index does not point at every row: stream → key → (shard, row, digest).

    A run that was killed has left such shards, and one that computed clips anew under another recipe. Only these are
    opened, and those that ``shards.json`` does not list.

    Args:
        folder: the cache.
        index: of it; none: all shards are opened.
        streams: which to look for.
        note: list what is opened.

    Raises:
        StoreError: a damaged shard among them; ``verify --repair`` sets it aside.
    """
    places: Places = {stream: {} for stream in streams}
    if not folder.is_dir():
        return places
    names = [path.name for path in shard_files(folder)]
    listed = listed_shards(folder, names)
    pointed = {s: index.pointed(s) for s in streams if index is not None and s in index.streams}

    def accounted(name: str) -> bool:
        if (one := listed.get(name)) is None:
            return False
        return all(pointed.get(s, {}).get(name) == one.clips for s in streams if s in one.recipes)

    found: dict[str, ShardSummary] = {}
    for shard, tables, aside in open_all(folder, [name for name in names if not accounted(name)]):
        add_places(places, shard, tables, aside)
        if shard.path.name not in listed:
            found[shard.path.name] = ShardSummary.of(shard)
    if note and found:
        with locked(folder):
            add_to_list(folder, found)
    return places
