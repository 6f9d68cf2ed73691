"""The index of a cache: ``manifest.csv``, the manifest's columns plus, for each stream, where each clip lies.

It is a convenience: everything in it can be read back from the shards (``kdcache.store.scan``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import OptionError, StoreError
from kdcache.files import refusal
from kdcache.manifest import NUMBERED, manifest_text
from kdcache.manifest_forms import CLASS
from kdcache.manifest_numbers import INTEGERS, TIMES
from kdcache.plain_csv import PlainTable
from kdcache.store.commit import shard_files
from kdcache.store.index_changes import Located, untouched
from kdcache.store.index_digest import INDEX, listed_digest, replace_index
from kdcache.store.indexed import PARTS, Indexed, Place, PlacesByKey, index_exists, indexed_streams, location_columns
from kdcache.store.layout import Entry, StrPath
from kdcache.store.lock import locked
from kdcache.store.set_aside import places_set_aside
from kdcache.store.shard_list import add_to_list, unlisted

Places = dict[str, dict[str, Place]]  # stream → key → place

_SPAN = ("source", "start_s", "stop_s")


def load_index(folder: StrPath, *, edited: bool = False) -> pd.DataFrame:
    """Read a cache's index; ``edited`` takes one that has changed since kdcache wrote it.

    Returns:
        One row a clip, dtypes as ``read_manifest``; ``<stream>:row`` is Int64, ``<NA>`` where nothing is cached, and
        the other three are text, empty where nothing is cached.

    Raises:
        StoreError: the folder has no index, or one that is not what was written.
        ManifestError: the index was edited into something else.
    """
    index = open_index(folder, edited=edited)
    return index.frame(index.table.names)


def open_index(folder: StrPath, *, edited: bool = False) -> Indexed:
    """As ``load_index``, with columns that are made when they are asked for."""
    if (index := Indexed.of(folder, edited=edited)) is not None:
        return index
    shards = Path(folder).is_dir() and shard_files(Path(folder))
    hint = f"run `kdcache reindex {folder}`" if shards else "name a folder that `kdcache extract` has filled"
    raise StoreError(f"{folder}: there is no cache here ({INDEX} is missing); {hint}.")


def load_places(folder: StrPath, streams: Sequence[str]) -> Places:
    """What the index says is cached, of shards that exist and not set aside: stream → key → (shard, row, digest).

    Cheaper than ``scan`` (no shard is opened) but it may lag behind the shards after a run was killed.
    """
    places: Places = {s: {} for s in streams}
    if (index := Indexed.of(folder)) is not None:
        for stream in set(streams).intersection(index.streams):
            places[stream] = dict(PlacesByKey(index, stream))
    return places


def update_index(
    folder: StrPath,
    rows: pd.DataFrame,
    located: Located,
    missing: Mapping[str, Mapping[str, str]] | None = None,
    unchanged: str = "",
    planned_on: str | None = None,
) -> str:
    """Merge manifest rows and locations into the index, atomically and under the folder's lock; list new shards.

    Rows are matched by ``clip_id``: known ones take the new columns' values, new ones are appended, rows of other
    manifests stay. A clip whose source or span has changed loses its old locations. What ``verify --repair`` has set
    aside is left out, however the call was planned, and so are ``located`` places in shards that are gone. An index
    that would not change is not rewritten.

    Args:
        folder: the cache.
        rows: manifest rows, as ``read_manifest`` gives them; columns of an index in them are ignored.
        located: stream → clip_id → (shard, row, key, digest), for clips of ``rows``.
        missing: stream → clip_id → key of arrays that are wanted and may not be there: where the index points to an
            array of another key (an older recipe, another content of the source) it forgets it, so that what is
            wanted now is never mixed with what was wanted before.
        unchanged: SHA-256 of an index of which is known that nothing of this call would change it.
        planned_on: SHA-256 of the index that ``located`` was planned from, empty where there was none.

    Returns:
        SHA-256 of the index, if it was the one of ``planned_on`` until now and has taken all that is ``located``; else
        empty.

    Raises:
        StoreError: the index cannot be written; the old one stands.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows.drop(columns=location_columns(list(rows.columns)))
    new_shards = unlisted(folder, {entry[0] for at in located.values() for entry in at.values()})
    with locked(folder):
        before = listed_digest(folder)
        if unchanged and before == unchanged and index_exists(folder / INDEX):
            return unchanged
        all_taken = _update(folder, rows, located, missing or {})
        add_to_list(folder, new_shards)
        return listed_digest(folder) if all_taken and before == planned_on else ""


def _update(folder: Path, rows: pd.DataFrame, located: Located, missing: Mapping[str, Mapping[str, str]]) -> bool:
    """``update_index`` under the folder's lock; whether all that is located is there."""
    before = Indexed.of(folder)
    there, aside = {p.name for p in shard_files(folder)}, places_set_aside(folder)
    usable = {
        stream: {clip: e for clip, e in at.items() if e[0] in there and (e[0], stream, e[1]) not in aside}
        for stream, at in located.items()
    }
    all_there = all(len(usable[stream]) == len(at) for stream, at in located.items())
    if before is not None and untouched(before, rows, usable, missing, aside):
        new_rows = rows[~rows["clip_id"].isin(before.table.texts("clip_id"))]
        if new_rows.empty:
            return all_there
        if before.plain is not None:
            _append(folder, before.plain, _merge(None, new_rows, _of(new_rows, usable), {}, aside))
            return all_there
    old = None if before is None else before.frame(before.table.names)
    new = _merge(old, rows, usable, missing, aside)
    if old is None or list(new) != list(old.columns) or any(not _same(new[c], old[c]) for c in new):
        save_index(pd.DataFrame(new), folder)
    return all_there


def refuse_other_classes(folder: StrPath, rows: pd.DataFrame) -> None:
    """Refuse labels that were numbered by name where other clips of a cache have these numbers for other names.

    Args:
        folder: the cache, which need not be there yet.
        rows: of a manifest; only those whose labels were names (``kdcache.manifest.NUMBERED``) are asked.

    Raises:
        OptionError: a class that has another number there, or a number that has another class.
    """
    if not rows.attrs.get(NUMBERED) or not index_exists(Path(folder) / INDEX):
        return
    index = load_index(folder)
    if not {"label", CLASS} <= set(index.columns):
        return
    others = index[~index["clip_id"].isin(rows["clip_id"]) & index["label"].notna() & (index[CLASS].fillna("") != "")]
    here = dict(zip(rows[CLASS], rows["label"], strict=True))
    named = {label: name for name, label in here.items() if name}
    for label, name in others[["label", CLASS]].drop_duplicates().itertuples(index=False, name=None):
        if here.get(name, label) != label or named.get(label, name) != name:
            raise OptionError(
                f"{Path(folder) / INDEX}: label {label} is class {name!r}, and in this manifest, whose classes are "
                f"numbered by name, {_clash(name, label, here, named)}: take one manifest that names all classes, "
                "or write numbers into label and the names into class."
            )


def _clash(name: str, label: int, here: Mapping[str, int], named: Mapping[int, str]) -> str:
    return f"it is {named[label]!r}" if named.get(label, name) != name else f"{name!r} is label {here[name]}"


def _of(rows: pd.DataFrame, located: Located) -> Located:
    clips = set(rows["clip_id"])
    return {stream: {clip: entry for clip, entry in at.items() if clip in clips} for stream, at in located.items()}


def _append(folder: Path, before: PlainTable, new: Mapping[str, NDArray[Any]]) -> None:
    """Add rows behind those of an index that stay as they are."""
    size = len(new["clip_id"])
    rows = pd.DataFrame({column: new.get(column, _empty(column, size)) for column in before.names})
    text = manifest_text(rows, str(folder / INDEX), allow_absolute=True)
    _replace(folder, before.data + text.partition("\n")[2].encode())


def save_index(index: pd.DataFrame, folder: Path) -> None:
    """Replace the index; the folder's lock must be held.

    Raises:
        StoreError: the index cannot be written; the old one stands.
    """
    _replace(folder, manifest_text(index, str(folder / INDEX), allow_absolute=True).encode())


def _replace(folder: Path, data: bytes) -> None:
    try:
        replace_index(folder, data)
    except OSError as error:
        reason, remedy = refusal(error)
        raise StoreError(
            f"{folder / INDEX}: could not be written ({reason}), the old one stands and no shard is lost: {remedy}, "
            "then run the same command again."
        ) from error


def drop_locations(folder: Path, index: pd.DataFrame, bad: Mapping[str, NDArray[np.bool_]]) -> None:
    """Forget where clips lie: ``bad`` is a mask over the rows of ``index``, the folder's, for each stream.

    The lock must be held since the index was loaded.
    """
    for stream, mask in bad.items():
        for part in PARTS:
            index.loc[mask, f"{stream}:{part}"] = pd.NA if part == "row" else ""
    save_index(index, folder)


def _same(new: NDArray[Any], old: pd.Series[Any]) -> bool:
    before = pd.Series(old.to_numpy(object), dtype=object)
    return len(new) == len(before) and pd.Series(new, dtype=object).equals(before)


def _merge(
    old: pd.DataFrame | None,
    rows: pd.DataFrame,
    located: Located,
    missing: Mapping[str, Mapping[str, str]],
    aside: Collection[tuple[str, str, int]],
) -> dict[str, NDArray[Any]]:
    """All columns of the new index, as object arrays."""
    old = rows.iloc[:0] if old is None else old
    before = len(old)
    ids = pd.Index(old["clip_id"]).append(pd.Index(rows["clip_id"]))
    ids = ids[~ids.duplicated()]
    place = ids.get_indexer(pd.Index(rows["clip_id"]))
    known = place < before
    moved = np.zeros(len(ids), bool)
    for column in _SPAN:
        a, b = old[column].to_numpy(object)[place[known]], rows[column].to_numpy(object)[known]
        moved[place[known]] |= (a != b) & ~((a != a) & (b != b))  # NaN, the source's own start or end, equals NaN
    streams = sorted({*indexed_streams(list(old.columns)), *located})
    places = set(location_columns(list(old.columns)))
    kept = [c for c in old.columns if c not in places]
    merged: dict[str, NDArray[Any]] = {}
    for column in dict.fromkeys([*kept, *rows.columns]):
        values = _empty(column, len(ids))
        if column in old.columns:
            values[:before] = old[column].to_numpy(object)
        if column in rows.columns:
            values[place] = rows[column].to_numpy(object)
        merged[column] = values
    numbers = {clip: i for i, clip in enumerate(ids)} if located or missing else {}
    for stream in streams:
        stale = moved.copy()
        if f"{stream}:key" in old.columns:
            keys = old[f"{stream}:key"].tolist()
            stale[
                [i for clip, key in missing.get(stream, {}).items() if (i := numbers[clip]) < before and keys[i] != key]
            ] = True
            lie = zip(old[f"{stream}:shard"].tolist(), old[f"{stream}:row"].tolist(), strict=True)
            stale[[i for i, (shard, row) in enumerate(lie) if aside and (shard, stream, row) in aside]] = True
        at = np.array([numbers[clip] for clip in located.get(stream, {})], np.intp)
        entries = [Entry(*e) for e in located.get(stream, {}).values()]
        for i, part in enumerate(PARTS):
            column = f"{stream}:{part}"
            values = _empty(column, len(ids))
            if column in old.columns:
                values[:before] = old[column].to_numpy(object)
                values[stale] = _empty(column, 1)[0]
            values[at] = np.array([e[i] for e in entries], object)
            merged[column] = values
    return merged


def _empty(column: str, size: int) -> NDArray[Any]:
    """Missing values as ``load_index`` gives them."""
    missing: Any = np.nan if column in TIMES else pd.NA if column in INTEGERS or column.endswith(":row") else ""
    return np.full(size, missing, object)
