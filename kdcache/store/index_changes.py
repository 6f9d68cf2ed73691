"""Whether a call changes what an index has, told column by column."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from kdcache.manifest_numbers import INTEGERS, TIMES
from kdcache.store.indexed import PARTS, Indexed

Located = Mapping[str, Mapping[str, tuple[str, int, str, str]]]  # stream → clip_id → Entry


def untouched(
    index: Indexed,
    rows: pd.DataFrame,
    located: Located,
    missing: Mapping[str, Mapping[str, str]],
    aside: Collection[tuple[str, str, int]],
) -> bool:
    """Whether all rows and columns of an index stay as they are; rows may come behind them.

    Args:
        index: as it is.
        rows, located, missing: as ``update_index`` takes them.
        aside: shard, stream and row of the arrays that must not be used.
    """
    if not set(rows.columns) <= set(index.table.names) or not located.keys() <= set(index.streams):
        return False
    place = index.rows_of(rows["clip_id"])
    if not all(_same(index, column, rows[column], place) for column in rows.columns):
        return False
    number = {clip: i for clip, i in zip(rows["clip_id"].tolist(), place.tolist(), strict=True) if i >= 0}
    for stream in index.streams:
        entries = {clip: entry for clip, entry in located.get(stream, {}).items() if clip in number}
        wanted = {clip: key for clip, key in missing.get(stream, {}).items() if clip in number}
        if not entries and not wanted:
            continue
        shards, rows_of, keys, digests = (index.table.texts(f"{stream}:{part}") for part in PARTS)
        for clip, (shard, row, key, digest) in entries.items():
            i = number[clip]
            if (shards[i], rows_of[i], keys[i], digests[i]) != (shard, str(row), key, digest):
                return False
        if any(keys[number[clip]] not in ("", key) for clip, key in wanted.items()):
            return False
    return not aside or not any(_set_aside(index, stream, aside) for stream in index.streams)


def _same(index: Indexed, column: str, new: pd.Series[Any], place: np.ndarray[Any, Any]) -> bool:
    """Whether a column has the cells that it had, in the rows that were there."""
    known = place >= 0
    if not known.any():
        return True
    old = pd.Series(index.column(column))
    if column in TIMES:
        a, b = old.to_numpy(float)[place[known]], new.to_numpy(float)[known]
        return bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())
    if column in INTEGERS:
        if new.dtype != old.dtype:
            return False
        a, b = (each.fillna(-1).to_numpy(np.int64) for each in (old, new))
        return bool((a[place[known]] == b[known]).all())
    if new.isna().any():
        return False
    before, after = old.tolist(), new.tolist()
    if known.all() and len(place) == len(before) and (place == np.arange(len(place))).all():
        return bool(before == after)
    return all(i < 0 or before[i] == cell for i, cell in zip(place.tolist(), after, strict=True))


def _set_aside(index: Indexed, stream: str, aside: Collection[tuple[str, str, int]]) -> bool:
    """Whether the index points at an array that must not be used."""
    places = zip(index.shards(stream), index.numbers(stream).tolist(), strict=True)
    return any((shard, stream, row) in aside for shard, row in places)
