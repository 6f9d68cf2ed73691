"""``kdcache inspect``: what a cache or a shard holds, in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import StoreError
from kdcache.recipe import Recipe, canonical
from kdcache.store.commit import is_shard_name, shard_files
from kdcache.store.failures import FILE as FAILURES
from kdcache.store.failures import load_failures
from kdcache.store.layout import FORMAT, QUANTISED_FORMAT, StrPath
from kdcache.store.reader import Shard, open_shard
from kdcache.store.scan import load_set_aside, strings

Opened = list[tuple[Shard, dict[str, NDArray[Any]]]]


def inspect(path: StrPath, axes_of: Callable[[Recipe], str | None] = lambda recipe: None) -> str:
    """Describe a cache folder or one shard: streams, shapes, recipes, sizes, versions, decoders and failures.

    ``axes_of`` gives the axes of a stream from its recipe, such as ``kdcache.streams.axes_of``.

    Raises:
        StoreError: nothing to describe, or a shard that cannot be read.
    """
    path = Path(path)
    if path.is_file() and not is_shard_name(path) and not h5py.is_hdf5(path):
        raise StoreError(
            f"{path}: no shard (not an HDF5 file); name a shard or a folder that `kdcache extract` has filled."
        )
    folder = path if path.is_dir() else path.parent
    files = shard_files(path) if path.is_dir() else [path]
    opened = [open_shard(p) for p in files]
    if not opened:
        raise StoreError(f"{path}: no shards here; name a shard or a folder that `kdcache extract` has filled.")
    clips = {c for _, tables in opened for c in strings(tables["clip"])}
    size = sum(shard.size for shard, _ in opened)
    quantised = any(stored.packing is not None for shard, _ in opened for stored in shard.streams.values())
    format_ = QUANTISED_FORMAT if quantised else FORMAT
    lines = [f"{path}: {format_}, {len(opened)} shard(s), {len(clips)} clip(s), {_size(size)}", ""]
    lines += [*_streams(opened, axes_of), "", "recipes", *_recipes(opened)]
    lines += ["", "decoders", *_counted(_decoders(opened)), "", "libraries", *_counted(_libraries(opened))]
    if path.is_dir():
        lines += _failures(folder)
    return "\n".join(lines)


def _streams(opened: Opened, axes_of: Callable[[Recipe], str | None]) -> list[str]:
    """One line for each stream and recipe."""
    rows = [("stream", "clips", "axes", "shape", "dtype", "error", "stored", "codec", "recipe")]
    groups: dict[tuple[str, str], Opened] = {}
    for shard, tables in opened:
        for stream, stored in shard.streams.items():
            groups.setdefault((stream, stored.recipe), []).append((shard, tables))
    for (stream, recipe), found in sorted(groups.items()):
        places = [shard.streams[stream] for shard, _ in found]
        codecs = {"zstd" if p.start is None and p.bytes else "none" for p in places}
        rows.append(
            (
                stream,
                str(sum(shard.clips for shard, _ in found)),
                axes_of(found[0][0].recipes[stream]) or "not known",
                " × ".join(map(str, places[0].shape)) or places[0].layout,
                str(places[0].dtype),
                _error([p.errors for p in places if p.errors is not None]),
                _size(sum(p.bytes for p in places)),
                "+".join(sorted(codecs)),
                recipe,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _error(errors: Sequence[NDArray[np.float32]]) -> str:
    """Mean and largest relative error of quantised clips, in per cent of a clip's norm."""
    if not errors:
        return "-"
    each = 100 * np.concatenate(errors)
    return f"{each.mean():.2f} % (≤ {each.max():.2f})"


def _recipes(opened: Opened) -> list[str]:
    recipes = {st.recipe: (s, shard.recipes[s]) for shard, _ in opened for s, st in shard.streams.items()}
    return [f"  {digest} {stream}: {canonical(recipe)}" for digest, (stream, recipe) in sorted(recipes.items())]


def _decoders(opened: Opened) -> Counter[str]:
    return Counter(
        str(json.loads(text).get("decoder", "not recorded"))
        for _, tables in opened
        for text in tables["origin"].tolist()
    )


def _libraries(opened: Opened) -> Counter[str]:
    return Counter(", ".join(f"{k} {v}" for k, v in sorted(shard.libraries.items())) for shard, _ in opened)


def _counted(counter: Counter[str]) -> list[str]:
    return [f"  {count} × {name}" for name, count in sorted(counter.items())]


def _failures(folder: Path) -> list[str]:
    lines = []
    if (folder / FAILURES).exists():
        failures = load_failures(folder)
        lines += ["", f"failures ({len(failures)}, all in {FAILURES})"]
        lines += [f"  {f.clip_id} ({f.stage}): {f.reason}" for f in failures[:10]]
    aside = load_set_aside(folder)
    if aside:
        lines += ["", f"set aside as damaged: {len(aside)} array(s), listed in damaged.csv"]
    return lines


def _size(count: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(np.log10(max(count, 1)) // 3), len(units) - 1)
    return f"{count:.0f} B" if power == 0 else f"{count / 1000**power:.1f} {units[power]}"
