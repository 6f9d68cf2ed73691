"""The recipe of a stream: the one on which all shards agree, or that which was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import StoreError
from kdcache.recipe import Recipe, by_any_means, differences, digest, nothing_to_enlarge, unenlarged
from kdcache.store.commit import shard_files
from kdcache.store.scan import Origins, open_all, span_of
from kdcache.store.shard import Shard, open_shard
from kdcache.store.shard_list import ShardSummary, listed_shards
from kdcache.store.texts import manifest_rows


class Used(NamedTuple):
    """What a cache uses of a shard."""

    name: str
    recipe: str
    """Digest of the stream's recipe in it."""
    rows: NDArray[np.int64]
    """Those that hold the cache's clips."""


def one_recipe(folder: Path, stream: str, used: Sequence[Used], open_: Callable[[str], Shard]) -> Shard:
    """A shard with the recipe on which all agree; of each recipe one shard is opened.

    Raises:
        StoreError: they do not agree; names the fields that differ and the shards.
    """
    if not used:
        raise StoreError(f"{folder}: no clip has {stream} under the recipe asked for.")
    shards: dict[str, Shard] = {}  # one of each recipe
    groups: dict[str, list[str]] = {}  # recipe, whatever decoder was named → digests as they are
    for one in used:
        if one.recipe not in shards:
            shards[one.recipe] = shard = open_(one.name)
            if shard.stored(stream).recipe != one.recipe:
                raise unfitting(folder, one.name)
            groups.setdefault(digest(by_any_means(shard.recipes[stream])), []).append(one.recipe)
    if len(groups) == 1:
        return shards[used[0].recipe]
    recipes = {stored: shard.recipes[stream] for stored, shard in shards.items()}
    if (agreed := _unenlarged(folder, used, recipes)) is not None:
        return shards[agreed]
    a, b = list(groups.values())[:2]
    fields = "; ".join(differences(recipes[a[0]], recipes[b[0]]))
    of_each = [(g[0], [one.name for one in used if one.recipe in g]) for g in groups.values()]
    parts = " and ".join(f"{stored[:8]} in {_names(names)}" for stored, names in of_each)
    raise StoreError(
        f"{folder}: stream {stream!r} mixes recipes ({parts}), which differ in {fields}. Extract all clips "
        "under one recipe, or choose one with recipe=DIGEST."
    )


def _unenlarged(folder: Path, used: Sequence[Used], recipes: Mapping[str, Recipe]) -> str | None:
    """The recipe that keeps the size of small frames, where all others differ only in enlarging, and enlarged none."""
    common = by_any_means(unenlarged(recipes[used[0].recipe]))
    if any(by_any_means(unenlarged(recipe)) != common for recipe in recipes.values()):
        return None
    origins = Origins(folder)
    for one in used:
        recipe = by_any_means(recipes[one.recipe])
        if recipe != common and not all(nothing_to_enlarge(recipe, origins.at(one.name, r)) for r in one.rows.tolist()):
            return None
    return next((stored for stored, recipe in recipes.items() if by_any_means(recipe) == common), None)


def chosen_recipes(folder: Path, wanted: Sequence[str], streams: Sequence[str]) -> dict[str, str]:
    """stream → digest of the recipe to read, for those digests (or first digits) asked for.

    Raises:
        StoreError: none of these streams has such a recipe, or one has several.
    """
    chosen: dict[str, str] = {}
    if not wanted:
        return chosen
    known = {pair for its in _recipes_of(folder).values() for pair in its.items()}
    for start in wanted:
        found = sorted((s, d) for s, d in known if d.startswith(start) and s in streams)
        if not found or len({s for s, _ in found}) < len(found):
            problem = "matches more than one recipe" if found else "is not here"
            have = ", ".join(f"{d[:8]} ({s})" for s, d in sorted(known))
            raise StoreError(f"{folder}: recipe {start!r} {problem}; choose from {have}.")
        chosen |= dict(found)
    return chosen


def places_of_recipe(
    folder: Path, stream: str, recipe: str, clips: pd.DataFrame
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Where the arrays of one recipe lie, whatever the index says; a clip is known by its source and span.

    Returns:
        Of each clip the name of the shard and the row in it, "" and -1 where there is none.
    """
    at: dict[tuple[Any, ...], tuple[str, int]] = {}
    names = [name for name, its in _recipes_of(folder).items() if its.get(stream) == recipe]
    for shard, tables, aside in open_all(folder, names):
        if shard.stored(stream).recipe != recipe:
            raise unfitting(folder, shard.path.name)
        for row, clip in enumerate(manifest_rows(shard.path, tables)):
            if (stream, row) not in aside:
                at[span_of(clip)] = (shard.path.name, row)
    times = (clips[c].astype(object).where(clips[c].notna(), None) for c in ("start_s", "stop_s"))
    places = [at.get(span, ("", -1)) for span in zip(clips["source"], *times, strict=True)]
    return np.array([p[0] for p in places], object), np.array([p[1] for p in places], np.int64)


def _recipes_of(folder: Path) -> dict[str, dict[str, str]]:
    """Of every shard the digests of its streams' recipes: as listed, else it is opened."""
    names = [path.name for path in shard_files(folder)]
    listed = listed_shards(folder, names)
    opened = {name: ShardSummary.of(open_shard(folder / name)[0]) for name in names if name not in listed}
    known = listed | opened
    return {name: known[name].recipes for name in names}


def unfitting(folder: Path, name: str) -> StoreError:
    """That a shard is not the one that the index means."""
    return StoreError(f"{folder / name}: does not fit the index; run `kdcache reindex {folder}`.")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
