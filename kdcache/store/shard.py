"""The structure of a shard: what lies where, held against tables, recipes and the size of the file.

Shards may come from strangers: nothing is allocated here or by a reader that the file could not legitimately hold.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import StoreError
from kdcache.recipe import Recipe, digest
from kdcache.store.hdf5_guard import ATTRIBUTES, allocated, open_shard_file, text_attribute
from kdcache.store.layout import CHECKSUM, DTYPES, LAYOUTS, PER_STREAM, TABLES, StrPath, damaged, tables_digest
from kdcache.store.quantised import FIELD, SCALES, Packing

Int64 = NDArray[np.int64]
Tables = dict[str, NDArray[Any]]  # by HDF5 path
Version = tuple[int, int, int]  # of a file: bytes, and when its content and its inode changed, in ns

TABLES_BYTES = 512 * 2**20  # of all small tables of a shard together; those of a full shard take some 10 MiB
CLIP_BYTES = 2**30  # of one clip of a stream that takes much less space in the file than in memory …
PIECE = 2**24  # numbers in a compressed piece of a ragged stream
PACKED = 1000  # … so many times less: zeros may compress as far, and what is no clip at all, too


@dataclass(frozen=True)
class Stored:
    """Where one stream lies in one shard."""

    layout: str
    recipe: str
    """Digest of the recipe."""
    dtype: np.dtype[Any]
    path: str
    """HDF5 path of the data set."""
    start: int | None
    """Byte offset of the data in the file; ``None`` when compressed (or empty)."""
    bytes: int
    """Space taken in the file."""
    shape: tuple[int, ...] = ()
    """Fixed: [V, …] of each clip."""
    bounds: Int64 | None = None
    """Ragged, jpeg: first element of each clip in the data, [n + 1]."""
    shapes: Int64 | None = None
    """Ragged: shape of each clip, [n, ndim]."""
    frames: tuple[Int64, Int64] | None = None
    """jpeg: first frame of each clip [n + 1], first byte of each frame."""
    packing: Packing | None = None
    """Quantised: of one view."""
    scales_at: tuple[int, int] = (0, 0)
    """Quantised: byte offsets of scales and offsets in the file."""
    errors: NDArray[np.float32] | None = None
    """Quantised: relative error of each clip, [n]."""
    digests: NDArray[np.bytes_] | None = None
    """SHA-256 of each clip, first hex digits, [n]."""
    checks: Int64 | None = None
    """Checksum of each clip-view [n, V], in ragged and jpeg streams of each clip [n, 1]; shards of 0.1 have none."""

    @property
    def units(self) -> int:
        """Pieces of a clip that can be read, and are checked, by themselves: the views of a fixed stream, else one."""
        return self.shape[0] if self.layout == "fixed" else 1


@dataclass(frozen=True)
class Shard:
    """One shard, without its arrays; plain data."""

    path: Path
    size: int
    clips: int
    recipes: dict[str, Recipe]
    libraries: dict[str, str]
    streams: dict[str, Stored]
    digest: str
    """Of its tables, which hold the digests of all arrays: equal for shards that hold the same."""
    version: Version | None
    """What the file was when it was opened."""

    @classmethod
    def open(cls, path: StrPath) -> Self:
        """Read a shard's structure; see ``open_shard``."""
        return open_shard(path)[0]  # type: ignore[return-value]

    def stored(self, stream: str) -> Stored:
        """Where a stream lies.

        Raises:
            StoreError: the shard does not hold it.
        """
        if stream not in self.streams:
            raise damaged(self.path, f"it does not hold stream {stream!r}, which the index expects there")
        return self.streams[stream]


def open_shard(path: StrPath) -> tuple[Shard, dict[str, NDArray[Any]]]:
    """Open a shard safely, check its structure and the digest of its small tables.

    Returns:
        The shard, and its tables by HDF5 path (``clip``, ``row``, ``key/i3d-rgb/mixed4a`` …).

    Raises:
        StoreError: damaged, unsafe, unfinished or of another format; says which and what to do.
    """
    path = Path(path)
    found = version(path)  # first: one that is put there meanwhile shows as a change
    with open_shard_file(path) as (file, datasets):
        texts = [text_attribute(path, file, name) for name in ATTRIBUTES]
        recipes, digests, libraries = (_json_object(path, t, n) for t, n in zip(texts[1:], ATTRIBUTES[1:], strict=True))
        if {s: digest(r) for s, r in recipes.items()} != digests:
            raise damaged(path, "its recipes do not have the digests stored beside them")
        data = {_data_path(s, recipes[s]): s for s in recipes}
        tables = _read_tables(path, {n: d for n, d in datasets.items() if n not in data}, recipes)
        if (its := tables_digest(texts, tables)) != text_attribute(path, file, "tables_digest"):
            raise damaged(path, "its tables have changed since they were written")
        missing = [name for name in (*TABLES, *data) if name not in datasets]
        if missing:
            raise damaged(path, f"it lacks {', '.join(missing)}")
        clips, size = len(tables["clip"]), path.stat().st_size
        streams = {
            s: _stored(path, s, recipes[s], digests[s], datasets, p, tables, clips, size) for p, s in data.items()
        }
    return Shard(path, size, clips, recipes, libraries, streams, its, found), tables


def version(path: Path) -> Version | None:
    """Size and times of change of a file; ``None`` where there is none."""
    try:
        its = os.stat(path)
    except OSError:
        return None
    return its.st_size, its.st_mtime_ns, its.st_ctime_ns


def replaced(path: Path) -> StoreError:
    """The error for a shard that is another one than that which was opened under its name."""
    return StoreError(
        f"{path}: another shard lies here than when the cache was opened; open the cache, or start the command, again."
    )


def _read_tables(path: Path, datasets: dict[str, Any], recipes: dict[str, Recipe]) -> Tables:
    """Read all small tables, once their names, types and sizes are those of the format."""
    allowed = dict.fromkeys(TABLES, ("S", 1))
    for stream, recipe in recipes.items():
        allowed |= _tables_of(stream, recipe)
    for name, dataset in datasets.items():
        if name not in allowed:
            raise StoreError(f"{path}: it holds {name!r}, which shards of this format do not; do not use this shard.")
        kind, ndim = allowed[name]
        if (dataset.dtype.kind if kind == "S" else dataset.dtype.str) != kind or dataset.ndim != (ndim or dataset.ndim):
            raise damaged(path, f"its table {name!r} is {dataset.dtype} {dataset.shape}, which no such table is")
        if dataset.chunks is not None:
            raise StoreError(
                f"{path}: its table {name!r} is compressed, which tables of shards are not; do not use it."
            )
    if (size := sum(dataset.nbytes for dataset in datasets.values())) > TABLES_BYTES:
        raise StoreError(f"{path}: its tables take {size:,} bytes, far more than those of a shard; do not use it.")
    return {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}


def _tables_of(stream: str, recipe: Recipe) -> dict[str, tuple[str, int]]:
    """Tables that a stream may have → their dtype (or kind, of text) and number of axes, 0 where that varies."""
    names = {f"key/{stream}": ("S", 1), f"digest/{stream}": ("S", 1), f"{CHECKSUM}/{stream}": ("<i8", 2)}
    names |= {
        f"frames/{stream}": ("<i4", 2),
        f"frames/{stream}/data": ("<i4", 1),
        f"frames/{stream}/offset": ("<i8", 1),
    }
    if recipe["layout"] == "ragged":
        names |= {f"{stream}/offset": ("<i8", 1), f"{stream}/shape": ("<i8", 2)}
    elif recipe["layout"] == "jpeg":
        names |= {f"{stream}/offset": ("<i8", 1), f"{stream}/frame_offset": ("<i8", 1)}
    elif FIELD in recipe:
        scale, offset, error = (f"{FIELD}/{stream}/{name}" for name in SCALES)
        names |= {scale: ("<f4", 0), offset: ("<f4", 0), error: ("<f4", 1)}
    return names


def _json_object(path: Path, text: str, name: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise damaged(path, f"its attribute {name!r} is not a JSON object")
    return value


def _data_path(stream: str, recipe: Recipe) -> str:
    if not isinstance(recipe, dict) or recipe.get("layout") not in LAYOUTS or recipe.get("dtype") not in DTYPES:
        raise ValueError(f"the recipe of stream {stream!r} has no layout or dtype of shards")
    return stream if recipe["layout"] == "fixed" else f"{stream}/data"


def _stored(
    path: Path,
    stream: str,
    recipe: Recipe,
    recipe_digest: str,
    datasets: dict[str, Any],
    data_path: str,
    tables: dict[str, NDArray[Any]],
    clips: int,
    size: int,
) -> Stored:
    """Check one stream's structure against its recipe, its tables and the size of the file."""
    dataset = datasets[data_path]
    layout, dtype = recipe["layout"], np.dtype(recipe["dtype"]).newbyteorder("<")
    for name in (*TABLES, *(f"{t}/{stream}" for t in PER_STREAM)):
        rows = tables[name].shape[:1] if name in tables else (len(tables.get(f"{name}/offset", ())) - 1,)
        if rows != (clips,):
            raise damaged(path, f"its table {name!r} does not have one entry for each of {clips} clip(s)")
    if dataset.dtype != dtype:
        raise damaged(path, f"stream {stream!r} has dtype {dataset.dtype}, its recipe says {layout} {recipe['dtype']}")
    start = dataset.id.get_offset() if dataset.chunks is None else None
    taken = dataset.id.get_storage_size()
    if dataset.chunks is None and dataset.size and (start is None or start + dataset.nbytes > size):
        raise damaged(path, f"stream {stream!r} reaches beyond the end of the file")
    where: dict[str, Any] = {"digests": tables[f"digest/{stream}"], "checks": tables.get(f"{CHECKSUM}/{stream}")}
    chunk: tuple[int, ...] | None = None
    if layout == "fixed":
        where["shape"] = dataset.shape[1:]
        whole = dataset.ndim > 1 and len(dataset) == clips and 0 not in dataset.shape[1:]
        chunk, largest = (1, 1, *dataset.shape[2:]), math.prod(dataset.shape[1:])
        if whole and FIELD in recipe:
            where |= _scales(path, stream, dataset, datasets, tables)
    elif layout == "ragged":
        where["bounds"], where["shapes"] = bounds, shapes = tables[f"{stream}/offset"], tables[f"{stream}/shape"]
        sizes = _sizes(shapes)
        whole = _covers(bounds, dataset) and [*sizes] == np.diff(bounds).tolist() and len(sizes) == clips
        largest = max(sizes, default=0)
    else:
        offset, frame_offset = where["frames"] = (tables[f"{stream}/offset"], tables[f"{stream}/frame_offset"])
        whole = len(offset) == clips + 1 and _covers(frame_offset, dataset) and _covers(offset, len(frame_offset) - 1)
        where["bounds"] = bounds = frame_offset[offset] if whole else frame_offset
        largest = int(np.diff(bounds).max(initial=0))
    checks = where["checks"]
    if checks is not None and checks.shape != (clips, dataset.shape[1] if layout == "fixed" else 1):
        raise damaged(path, f"stream {stream!r} has checksums {checks.shape}, which do not fit its clips")
    if not whole:
        raise damaged(path, f"stream {stream!r} has shape {dataset.shape}, which does not fit its tables")
    if (
        dataset.chunks is not None
        and (chunk or (min(dataset.chunks[0], CLIP_BYTES // dtype.itemsize),)) != dataset.chunks
    ):
        raise damaged(path, f"stream {stream!r} is stored in pieces of {dataset.chunks}, as no shard is")
    if largest * dtype.itemsize > max(CLIP_BYTES, PACKED * min(taken, allocated(path))):
        raise damaged(path, f"stream {stream!r} has a clip of {largest * dtype.itemsize:,} bytes, which it cannot hold")
    return Stored(layout, recipe_digest, dtype, dataset.name.lstrip("/"), start, taken, **where)


def _sizes(shapes: Int64) -> list[int]:
    """Elements of arrays of these shapes, in numbers that cannot overflow; −1 of none."""
    return [math.prod(shape) if min(shape, default=0) >= 0 else -1 for shape in shapes.tolist()]


def _scales(
    path: Path, stream: str, dataset: Any, datasets: dict[str, Any], tables: dict[str, NDArray[Any]]
) -> dict[str, Any]:
    """Where scales and offsets of a quantised stream lie, checked against its codes."""
    names = [f"{FIELD}/{stream}/{name}" for name in SCALES]
    scale, offset, error = (tables.get(name) for name in names)
    if scale is None or offset is None or error is None:
        lacking = ", ".join(name for name in names if name not in tables)
        raise damaged(path, f"stream {stream!r} is quantised, but lacks {lacking}")
    fits = scale.ndim == dataset.ndim and scale.shape[:2] == dataset.shape[:2]
    fits = fits and all(s in (1, c) for s, c in zip(scale.shape, dataset.shape, strict=True))
    at = tuple(datasets[name].id.get_offset() for name in names[:2])
    if not fits or offset.shape != scale.shape or error.shape != dataset.shape[:1] or None in at:
        raise damaged(path, f"stream {stream!r} has scales {scale.shape}, which do not fit its codes {dataset.shape}")
    if any(table.dtype != np.dtype("<f4") for table in (scale, offset, error)) or dataset.dtype != np.uint8:
        raise damaged(path, f"stream {stream!r} is quantised, but its tables are not float32 or its codes not uint8")
    return {"packing": Packing(dataset.shape[2:], scale.shape[2:]), "scales_at": at, "errors": error}


def _covers(bounds: Int64, dataset: Any) -> bool:
    """Whether bounds run from 0, never back, to the end of a data set (or of so many entries)."""
    length = (dataset,) if isinstance(dataset, int) else dataset.shape
    rising = len(bounds) > 0 and bounds[0] == 0 and bool((bounds[1:] >= bounds[:-1]).all())
    return rising and length == (int(bounds[-1]),)
