"""``shards.json``: what each shard of a cache holds, so that those of which nothing is read need not be opened.

A shard never changes, so what is listed of one holds for a file of its name and size. Caches of version 0.1 have no
list; a shard that is not listed, or has another size, is opened instead. Whoever reads an array opens its shard and
holds that against list and index, so a list that is wrong serves nothing wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kdcache.errors import KdcacheError, StoreError
from kdcache.files import refusal
from kdcache.log import logger
from kdcache.seals import read_json, write_json
from kdcache.store.commit import shard_files
from kdcache.store.shard import Shard, open_shard

LIST = "shards.json"


@dataclass(frozen=True)
class ShardSummary:
    """What is known of a shard."""

    size: int
    """Bytes of its file."""
    clips: int
    recipes: dict[str, str]
    """Stream → digest of its recipe."""
    shapes: dict[str, list[int]]
    """Stream → shape of each clip, of fixed streams; others have none."""

    @classmethod
    def of(cls, shard: Shard) -> Self:
        """What an opened shard holds."""
        its = shard.streams
        return cls(
            shard.size, shard.clips, {s: its[s].recipe for s in its}, {s: [*map(int, its[s].shape)] for s in its}
        )


def read_list(folder: Path) -> dict[str, ShardSummary]:
    """Everything listed, by the shard's name; nothing where there is no list.

    Raises:
        StoreError: it is not what kdcache wrote.
    """
    path = folder / LIST
    if not os.path.lexists(path):
        return {}
    remedy = f"run `kdcache reindex {folder}`, which makes it anew"
    try:
        return {str(name): _listed(one) for name, one in read_json(path, remedy)["shards"].items()}
    except KdcacheError as error:
        raise StoreError(str(error)) from error
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise StoreError(f"{path}: no list of shards ({error}): {remedy}.") from error


def _listed(one: Mapping[str, Any]) -> ShardSummary:
    """``ValueError``, ``TypeError`` or ``LookupError`` for what is none."""
    recipes = {str(s): str(digest) for s, digest in one["recipes"].items()}
    shapes = {s: [*map(int, one["shapes"][s])] for s in recipes}
    return ShardSummary(int(one["size"]), int(one["clips"]), recipes, shapes)


def listed_shards(folder: Path, names: Iterable[str]) -> dict[str, ShardSummary]:
    """Those of some shards that are listed with the size which their files have; of a broken list none."""
    try:
        known = read_list(folder)
    except StoreError as error:
        logger.warning("%s Until then shards are opened instead.", error)
        return {}
    return {name: known[name] for name in names if name in known and known[name].size == _size(folder / name)}


def _size(path: Path) -> int:
    """Bytes of a file, -1 where there is none."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1


def unlisted(folder: Path, names: Iterable[str]) -> dict[str, ShardSummary]:
    """What those of some shards hold that are not listed; one that cannot be opened is named by whoever reads it."""
    names = set(names)
    found: dict[str, ShardSummary] = {}
    for name in sorted(names - listed_shards(folder, names).keys()):
        try:
            found[name] = ShardSummary.of(open_shard(folder / name)[0])
        except StoreError as error:
            logger.debug("not listed: %s", error)
    return found


def add_to_list(folder: Path, found: Mapping[str, ShardSummary]) -> None:
    """Add shards to the list, and drop those that are gone; the folder's lock must be held.

    A disk that refuses loses only time: shards that are not listed are opened.
    """
    if not found:
        return
    try:
        known = read_list(folder)
    except StoreError as error:
        logger.warning("%s It is begun anew.", error)
        known = {}
    there = [path.name for path in shard_files(folder)]
    listed = {**known, **found}
    save_list(folder, {name: listed[name] for name in there if name in listed})


def save_list(folder: Path, listed: Mapping[str, ShardSummary]) -> None:
    """Replace the list; the folder's lock must be held. See ``add_to_list`` for a disk that refuses."""
    try:
        write_json(folder / LIST, {"shards": {name: asdict(one) for name, one in listed.items()}})
    except OSError as error:
        reason, _ = refusal(error)
        logger.warning("%s: not written (%s), so shards are opened that need not be", folder / LIST, reason)
