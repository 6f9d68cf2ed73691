"""Reading shards: where things lie is looked up once, rows are then taken by byte offset straight into the output.

Nothing is held open between calls: a ``Shard`` is a path and some numbers, so it survives fork, spawn, pickling and
threads as it is. Opening a file costs microseconds against the hundreds that a row takes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import StoreError
from kdcache.recipe import Recipe, digest
from kdcache.store.hdf5_guard import ATTRIBUTES, MALFORMED, open_shard_file, text_attribute
from kdcache.store.layout import LAYOUTS, PER_STREAM, TABLES, Payload, StrPath, damaged, tables_digest
from kdcache.store.quantised import FIELD, SCALES, Packing, Quantised

Int64 = NDArray[np.int64]


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


@dataclass(frozen=True)
class Shard:
    """One shard, without its arrays; plain data."""

    path: Path
    size: int
    clips: int
    recipes: dict[str, Recipe]
    libraries: dict[str, str]
    streams: dict[str, Stored]

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
    with open_shard_file(path) as (file, datasets):
        texts = [text_attribute(path, file, name) for name in ATTRIBUTES]
        recipes, digests, libraries = (_json_object(path, t, n) for t, n in zip(texts[1:], ATTRIBUTES[1:], strict=True))
        if {s: digest(r) for s, r in recipes.items()} != digests:
            raise damaged(path, "its recipes do not have the digests stored beside them")
        data = {_data_path(s, recipes[s]): s for s in recipes}
        tables = {name: np.asarray(d[()]) for name, d in datasets.items() if name not in data}
        if tables_digest(texts, tables) != text_attribute(path, file, "tables_digest"):
            raise damaged(path, "its tables have changed since they were written")
        missing = [name for name in (*TABLES, *data) if name not in datasets]
        if missing:
            raise damaged(path, f"it lacks {', '.join(missing)}")
        clips, size = len(tables["clip"]), path.stat().st_size
        streams = {
            s: _stored(path, s, recipes[s], digests[s], datasets, p, tables, clips, size) for p, s in data.items()
        }
    return Shard(path, size, clips, recipes, libraries, streams), tables


def _json_object(path: Path, text: str, name: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise damaged(path, f"its attribute {name!r} is not a JSON object")
    return value


def _data_path(stream: str, recipe: Recipe) -> str:
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
    if layout not in LAYOUTS or dataset.dtype != dtype:
        raise damaged(path, f"stream {stream!r} has dtype {dataset.dtype}, its recipe says {layout} {recipe['dtype']}")
    start = dataset.id.get_offset() if dataset.chunks is None else None
    taken = dataset.id.get_storage_size()
    if dataset.chunks is None and dataset.size and (start is None or start + dataset.nbytes > size):
        raise damaged(path, f"stream {stream!r} reaches beyond the end of the file")
    where: dict[str, Any] = {}
    if layout == "fixed":
        where["shape"] = dataset.shape[1:]
        whole = dataset.ndim > 1 and len(dataset) == clips
        if whole and FIELD in recipe:
            where |= _scales(path, stream, dataset, datasets, tables)
    elif layout == "ragged":
        where["bounds"], where["shapes"] = tables[f"{stream}/offset"], tables[f"{stream}/shape"]
        sizes = np.prod(where["shapes"], axis=1)
        whole = (
            len(sizes) == clips
            and _covers(where["bounds"], dataset)
            and bool((np.diff(where["bounds"]) == sizes).all())
        )
    else:
        offset, frame_offset = where["frames"] = (tables[f"{stream}/offset"], tables[f"{stream}/frame_offset"])
        where["bounds"] = frame_offset[offset]
        whole = len(offset) == clips + 1 and _covers(frame_offset, dataset) and _rising(offset)
    if not whole:
        raise damaged(path, f"stream {stream!r} has shape {dataset.shape}, which does not fit its tables")
    return Stored(layout, recipe_digest, dtype, dataset.name.lstrip("/"), start, taken, **where)


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


def _rising(offsets: Int64) -> bool:
    return offsets.ndim == 1 and len(offsets) > 0 and offsets[0] == 0 and bool((np.diff(offsets) >= 0).all())


def _covers(bounds: Int64, dataset: Any) -> bool:
    return _rising(bounds) and dataset.shape == (int(bounds[-1]),)


class StreamReader:
    """One stream of one shard, opened for the length of a ``with`` block."""

    def __init__(self, shard: Shard, stream: str) -> None:
        self.shard = shard
        self.stream = stream
        self.stored = shard.stored(stream)
        self._raw: FileIO | None = None
        self._file: Any = None
        self._data: Any = None

    def __enter__(self) -> Self:
        path = self.shard.path
        try:
            if self.stored.start is not None or self.stored.packing is not None:
                self._raw = FileIO(path)
            if self.stored.start is None:
                import hdf5plugin  # noqa: F401  (registers the zstd filter)

                self._file = h5py.File(path, "r", locking=False)
                self._data = self._file[self.stored.path]
            size = os.stat(path if self._raw is None else self._raw.fileno()).st_size
            if size != self.shard.size:
                raise damaged(path, f"it has {size} bytes where it had {self.shard.size}")
        except StoreError:
            self.__exit__(None, None, None)
            raise
        except MALFORMED as error:
            self.__exit__(None, None, None)
            raise damaged(path, f"cannot be opened ({error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in (self._raw, self._file):
            if handle is not None:
                handle.close()

    def row(self, row: int) -> Payload:
        """One clip as it was handed in: an array, or for jpeg the list of files."""
        stored = self.stored
        if stored.packing is not None and stored.errors is not None:
            views = range(stored.shape[0])
            each = [stored.packing.parts(self._packed(row, view)) for view in views]
            scale, offset, codes = (np.stack(parts) for parts in zip(*each, strict=True))
            return Quantised(codes, scale, offset, float(stored.errors[row]))
        if stored.bounds is None:
            out = np.empty((1, *stored.shape), stored.dtype)
            self.into([row], [0], out, None)
            return out.reshape(stored.shape)
        first, stop = int(stored.bounds[row]), int(stored.bounds[row + 1])
        flat = np.empty(stop - first, stored.dtype)
        if len(flat) and stored.start is not None:
            self._fill(stored.start + first * flat.itemsize, flat.view(np.uint8).data)
        elif len(flat):
            self._unpack(flat, np.s_[first:stop], None)
        if stored.frames is None:
            assert stored.shapes is not None
            return flat.reshape(stored.shapes[row])
        offset, frame_offset = stored.frames
        cuts = (frame_offset[offset[row] : offset[row + 1] + 1] - first).tolist()
        return [flat[a:b].tobytes() for a, b in pairwise(cuts)]

    def into(self, rows: Sequence[int], places: Sequence[int], out: NDArray[Any], view: int | None) -> None:
        """Read clips [V, …] of a fixed stream, or one view of each, into ``out[place]``; ``out`` is contiguous.

        Rows in ascending order are read fastest. Quantised streams are decoded.
        """
        start, views = self.stored.start, self.stored.shape[0]
        if self.stored.packing is not None:
            from kdcache.store.decoding import decode  # brings numba, which other streams do without

            packing = self.stored.packing
            packed, values = np.empty(packing.nbytes, np.uint8), np.empty(math.prod(packing.shape), np.float32)
            for row, place in zip(rows, places, strict=True):
                for number in range(views) if view is None else (view,):
                    scale, offset, codes = packing.parts(self._packed(row, number, packed))
                    decode(codes, scale, offset, out[place, number] if view is None else out[place], values)
            return
        if start is None:
            for row, place in zip(rows, places, strict=True):
                self._unpack(out, row if view is None else (row, view), np.s_[place])
            return
        buffer = out.reshape(-1).view(np.uint8).data
        size = out[:1].nbytes
        stride, skip = (size, 0) if view is None else (size * views, size * view)
        for row, place in zip(rows, places, strict=True):
            self._fill(start + row * stride + skip, buffer[place * size : (place + 1) * size])

    def pack(self, rows: Sequence[int], places: Sequence[int], out: NDArray[np.uint8], view: int) -> None:
        """Read one view of clips of a quantised stream as it is stored into ``out[place]``; see ``Packing``."""
        for row, place in zip(rows, places, strict=True):
            self._packed(row, view, out[place])

    def _packed(self, row: int, view: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        stored = self.stored
        assert stored.packing is not None
        size, nbytes = stored.packing.scale_bytes, stored.packing.nbytes
        packed = np.empty(nbytes, np.uint8) if out is None else out
        number = row * stored.shape[0] + view
        for place, at in enumerate(stored.scales_at):
            self._fill(at + number * size, packed[place * size : (place + 1) * size].data)
        codes = packed[2 * size :]
        if stored.start is None:
            self._unpack(codes.reshape(stored.packing.shape), (row, view), None)
        else:
            self._fill(stored.start + number * codes.nbytes, codes.data)
        return packed

    def _fill(self, offset: int, buffer: memoryview) -> None:
        """Read the file's bytes from ``offset`` on until the buffer is full."""
        assert self._raw is not None
        try:
            self._raw.seek(offset)
            done = self._raw.readinto(buffer)
            while done < len(buffer):  # one call gives at most 2 GiB
                got = self._raw.readinto(buffer[done:])
                if not got:
                    raise damaged(self.shard.path, f"stream {self.stream!r} ends before its last clip")
                done += got
        except StoreError:
            raise
        except OSError as error:
            raise damaged(self.shard.path, f"cannot be read ({error})") from error

    def _unpack(self, out: NDArray[Any], selection: Any, place: Any) -> None:
        """Decompress a selection of the data set into ``out[place]``."""
        try:
            self._data.read_direct(out, selection, place)
        except MALFORMED as error:
            raise damaged(self.shard.path, f"stream {self.stream!r} cannot be decompressed") from error


def decode_jpeg(files: Sequence[bytes], path: Path) -> NDArray[np.uint8]:
    """Decode JPEG files of one size to RGB, uint8 [T, H, W, 3].

    Raises:
        StoreError: a file that is not a JPEG picture.
    """
    import cv2

    frames = []
    for data in files:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if frame is None:
            raise damaged(path, "a JPEG frame cannot be decoded")
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8)
