"""``kdcache inspect``: what a cache or a shard holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from kdcache.errors import StoreError
from kdcache.recipe import FLOW_ENGINE, Recipe, canonical
from kdcache.store.commit import is_shard_name, shard_files
from kdcache.store.failures import FILE as FAILURES
from kdcache.store.failures import Failure, load_failures
from kdcache.store.fitted import parts, parts_file
from kdcache.store.layout import FORMAT, QUANTISED_FORMAT, StrPath
from kdcache.store.set_aside import load_set_aside
from kdcache.store.shard import Shard, Tables, open_shard
from kdcache.store.texts import objects, strings
from kdcache.text import aligned, size

SHOWN_FAILURES = 10
Opened = list[tuple[Shard, Tables]]


@dataclass(frozen=True)
class StreamDescription:
    """The arrays of one stream and recipe."""

    stream: str
    clips: int
    axes: str | None
    """None where they are not known."""
    shape: tuple[int, ...]
    """Of a clip; empty where clips differ, see ``layout``."""
    layout: str
    dtype: str
    bytes: int
    """As stored."""
    codec: str
    recipe: str
    """Digest of the recipe."""
    mean_error: float | None = None
    largest_error: float | None = None
    """Of features stored as uint8: relative to the norm of a clip, 0 to 1."""


@dataclass(frozen=True)
class CacheDescription:
    """What a cache folder, or one shard, holds; printing it shows tables."""

    path: Path
    format: str
    shards: int
    clips: int
    bytes: int
    streams: list[StreamDescription]
    recipes: dict[str, Recipe]
    """By digest."""
    decoders: dict[str, int]
    """Clips by decoder and version."""
    libraries: dict[str, int]
    """Shards by the versions of the libraries that wrote them."""
    failures: list[Failure]
    """Of a folder: clips that could not be extracted."""
    set_aside: int
    """Of a folder: arrays that ``verify --repair`` took out of use."""
    cross_fitted: dict[str, list[int]] = field(default_factory=dict)
    """Of a folder: digest of the recipe of each stream of cross-fitted weights → clips of each of their parts."""
    flow_engines: dict[str, int] = field(default_factory=dict)
    """Clips by the engine that computed their flow, where that was noted."""

    def __str__(self) -> str:
        head = f"{self.path}: {self.format}, {self.shards} shard(s), {self.clips} clip(s), {size(self.bytes)}"
        names = {one.recipe: one.stream for one in self.streams}
        lines = [head, "", *self._table(), "", "recipes"]
        lines += [f"  {digest} {names[digest]}: {canonical(recipe)}" for digest, recipe in self.recipes.items()]
        if self.cross_fitted:
            lines += ["", "cross-fitted (the network that was fitted without a part computes its clips)"]
            lines += [f"  {digest} {names[digest]}: {_in_parts(its)}" for digest, its in self.cross_fitted.items()]
        lines += ["", "decoders", *_counted(self.decoders)]
        if self.flow_engines:
            lines += ["", "engines of flow", *_counted(self.flow_engines)]
        lines += ["", "libraries", *_counted(self.libraries)]
        if self.failures:
            lines += ["", f"failures ({len(self.failures)}, all in {FAILURES})"]
            lines += [f"  {f.clip_id} ({f.stage}): {f.reason}" for f in self.failures[:SHOWN_FAILURES]]
        if self.set_aside:
            lines += ["", f"set aside as damaged: {self.set_aside} array(s), listed in damaged.csv"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        rows = [("stream", "clips", "axes", "shape", "dtype", "error", "stored", "codec", "recipe")]
        for one in self.streams:
            shape = " × ".join(map(str, one.shape)) or one.layout
            error = (
                "-"
                if one.mean_error is None
                else f"{100 * one.mean_error:.2f} % (≤ {100 * (one.largest_error or 0):.2f})"
            )
            stored = (str(one.clips), one.axes or "not known", shape, one.dtype, error, size(one.bytes), one.codec)
            rows.append((one.stream, *stored, one.recipe))
        return aligned(rows)


def inspect(path: StrPath, axes_of: Callable[[Recipe], str | None] = lambda recipe: None) -> str:
    """``describe`` as text."""
    return str(describe(path, axes_of))


def describe(path: StrPath, axes_of: Callable[[Recipe], str | None] = lambda recipe: None) -> CacheDescription:
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
    files = shard_files(path) if path.is_dir() else [path]
    opened = [open_shard(p) for p in files]
    if not opened:
        raise StoreError(f"{path}: no shards here; name a shard or a folder that `kdcache extract` has filled.")
    quantised = any(stored.packing is not None for shard, _ in opened for stored in shard.streams.values())
    recipes = {stored.recipe: shard.recipes[name] for shard, _ in opened for name, stored in shard.streams.items()}
    decoders, flow_engines = _computed_by(opened)
    return CacheDescription(
        path=path,
        format=QUANTISED_FORMAT if quantised else FORMAT,
        shards=len(opened),
        clips=len({c for shard, tables in opened for c in strings(shard.path, tables, "clip")}),
        bytes=sum(shard.size for shard, _ in opened),
        streams=_streams(opened, axes_of),
        recipes=dict(sorted(recipes.items())),
        decoders=decoders,
        libraries=dict(sorted(_libraries(opened).items())),
        failures=load_failures(path) if path.is_dir() else [],
        set_aside=len(load_set_aside(path)) if path.is_dir() else 0,
        cross_fitted=_cross_fitted(path, recipes) if path.is_dir() else {},
        flow_engines=flow_engines,
    )


def _cross_fitted(path: Path, recipes: dict[str, Recipe]) -> dict[str, list[int]]:
    """Digest of a recipe → clips of each part, of streams whose weights are cross-fitted."""
    found = {}
    for recipe_digest, recipe in sorted(recipes.items()):
        cross = recipe.get("backbone", {}).get("weights", {}).get("cross_fit")
        if cross is not None and parts_file(path, cross["clips"]).exists():
            found[recipe_digest] = [len(part) for part in parts(path, cross["clips"])]
    return found


def _in_parts(sizes: list[int]) -> str:
    return f"{sum(sizes)} clips in {len(sizes)} parts of {', '.join(map(str, sizes))}"


def _streams(opened: Opened, axes_of: Callable[[Recipe], str | None]) -> list[StreamDescription]:
    groups: dict[tuple[str, str], list[Shard]] = {}
    for shard, _ in opened:
        for stream, stored in shard.streams.items():
            groups.setdefault((stream, stored.recipe), []).append(shard)
    found = []
    for (stream, recipe), shards in sorted(groups.items()):
        places = [shard.streams[stream] for shard in shards]
        errors = [p.errors for p in places if p.errors is not None]
        each = np.concatenate(errors) if errors else None
        codecs = {"zstd" if p.start is None and p.bytes else "none" for p in places}
        found.append(
            StreamDescription(
                stream=stream,
                clips=sum(shard.clips for shard in shards),
                axes=axes_of(shards[0].recipes[stream]),
                shape=tuple(places[0].shape),
                layout=places[0].layout,
                dtype=str(places[0].dtype),
                bytes=sum(p.bytes for p in places),
                codec="+".join(sorted(codecs)),
                recipe=recipe,
                mean_error=None if each is None else float(each.mean()),
                largest_error=None if each is None else float(each.max()),
            )
        )
    return found


def _computed_by(opened: Opened) -> tuple[dict[str, int], dict[str, int]]:
    """Clips by decoder, and by engine of flow."""
    decoders, engines = Counter[str](), Counter[str]()
    for shard, tables in opened:
        for origin in objects(shard.path, tables, "origin"):
            decoders[str(origin.get("decoder", "not recorded"))] += 1
            if FLOW_ENGINE in origin:
                engines[str(origin[FLOW_ENGINE])] += 1
    return dict(sorted(decoders.items())), dict(sorted(engines.items()))


def _libraries(opened: Opened) -> Counter[str]:
    return Counter(", ".join(f"{k} {v}" for k, v in sorted(shard.libraries.items())) for shard, _ in opened)


def _counted(counts: dict[str, int]) -> list[str]:
    return [f"  {count} × {name}" for name, count in counts.items()]
