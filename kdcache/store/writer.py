"""Writing one shard: in one pass, under a temporary name, checked, and only then published."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import StoreError, unknown
from kdcache.files import refusal
from kdcache.recipe import Recipe, canonical, digest
from kdcache.store.checksum import checksums
from kdcache.store.commit import Sink, partial_file, publish
from kdcache.store.layout import (
    CHECKSUM,
    FORMAT,
    QUANTISED_FORMAT,
    DamagedShard,
    Entry,
    Payload,
    Record,
    StrPath,
    raw_bytes,
    row_digest,
    tables_digest,
)
from kdcache.store.quantised import FIELD, SCALES, Quantised
from kdcache.store.reader import StreamReader, packed_views, unseen
from kdcache.store.shard import Shard
from kdcache.store.validate import check_records

__all__ = ["CODECS", "Committed", "Record", "commit_shard"]

CODECS = ("zstd",)

_CHUNK = 256 * 2**10  # bytes of a compressed chunk of a ragged stream; a fixed stream has one clip-view a chunk
_PAGE = 4096  # data sets start on pages, so that they can be mapped into memory
_LIBRARIES = ("kdcache", "numpy", "h5py", "torch", "av", "decord", "opencv-contrib-python-headless", "numba")


@dataclass(frozen=True)
class Committed:
    """One published shard."""

    name: str
    """File name in the cache folder."""
    clips: list[str]
    """Clip ids, by row."""
    keys: dict[str, list[str]]
    """stream → key of each row."""
    digests: dict[str, list[str]]
    """stream → digest of each row."""

    @property
    def located(self) -> dict[str, dict[str, Entry]]:
        """stream → clip_id → where it lies, as ``update_index`` takes it."""
        return {
            s: {clip: Entry(self.name, row, self.keys[s][row], d[row]) for row, clip in enumerate(self.clips)}
            for s, d in self.digests.items()
        }


@dataclass(frozen=True)
class _Data:
    """How the clips of one stream are laid out in one HDF5 data set."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    slots: list[int | slice]  # where each clip goes
    tables: dict[str, NDArray[Any]]


def commit_shard(
    folder: StrPath, records: Sequence[Record], recipes: Mapping[str, Recipe], codec: str | None = None
) -> Committed:
    """Write records as the next shard of a cache folder.

    The file is written under a temporary name, closed, opened again, compared with the digest of each array handed
    in and flushed to the disk; only then it gets the next free name ``shard-%05d.h5``. Any number of processes
    may commit into one folder. The same records give the same bytes.

    Args:
        folder: the cache; made when absent.
        records: clips, all with the same streams.
        recipes: stream → recipe, with at least ``stream``, ``layout`` (``fixed``, ``ragged`` or ``jpeg``), ``dtype``.
        codec: ``None`` stores data sets contiguous and uncompressed; ``zstd`` compresses fixed and ragged streams.

    Raises:
        StoreError: records that do not fit their recipes, a full disk, or bytes that came back different. Nothing
            is left behind.
        OptionError: an unknown codec.
    """
    if codec is not None and codec not in CODECS:
        raise unknown("codec", codec, CODECS)
    folder = Path(folder)
    check_records(records, recipes)
    digests = {s: [row_digest(r.arrays[s]) for r in records] for s in recipes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial_file(folder) as temporary:
            _write(temporary, records, recipes, digests, codec)
            _check_written(temporary, digests)
            name = publish(temporary, folder)
    except StoreError:
        raise
    except OSError as error:
        reason, remedy = refusal(error)
        raise StoreError(
            f"{folder}: a shard of {len(records)} clip(s) could not be written ({reason}) and nothing half-written is "
            f"left: {remedy}, then run the same command again."
        ) from error
    return Committed(name, [r.clip_id for r in records], {s: [r.keys[s] for r in records] for s in recipes}, digests)


def _write(
    path: Path,
    records: Sequence[Record],
    recipes: Mapping[str, Recipe],
    digests: dict[str, list[str]],
    codec: str | None,
) -> None:
    """Write a whole shard; ``OSError`` when the disk refuses."""
    datas = {s: _lay_out(s, recipe, records, codec) for s, recipe in recipes.items()}
    tables = _tables(records, recipes, digests)
    for data in datas.values():
        tables |= data.tables
    attributes = {
        "format": QUANTISED_FORMAT if any(FIELD in recipe for recipe in recipes.values()) else FORMAT,
        "recipes": canonical(dict(recipes)),
        "recipe_digests": canonical({s: digest(r) for s, r in recipes.items()}),
        "libraries": canonical(_libraries()),
    }
    with Sink(path) as sink:
        try:
            _write_file(sink, datas, tables, attributes, records)
        except (OSError, RuntimeError):
            sink.raise_error()  # HDF5's own error says less than the disk's
            raise
        sink.raise_error()


def _write_file(
    sink: Sink,
    datas: dict[str, _Data],
    tables: dict[str, NDArray[Any]],
    attributes: dict[str, str],
    records: Sequence[Record],
) -> None:
    # Every metadata block of HDF5 1.10's format carries a checksum; without time stamps it is reproducible.
    with h5py.File(sink, "w", libver=("v110", "v110"), alignment_threshold=_PAGE, alignment_interval=_PAGE) as file:
        for name in sorted(tables):
            file.create_dataset(name, data=tables[name], track_times=False)
        for stream, data in datas.items():
            _write_data(file, data, [r.arrays[stream] for r in records], sink)
        attributes["tables_digest"] = tables_digest(list(attributes.values()), tables)
        for name, text in attributes.items():
            file.attrs[name] = _text([text])[0]  # fixed length: HDF5's heap of variable-length text has no checksum
        file.attrs["complete"] = 1


def _write_data(file: Any, data: _Data, payloads: list[Any], sink: Sink) -> None:
    options: dict[str, Any] = {}
    if data.chunks is not None:
        import hdf5plugin

        # Higher levels and (bit) shuffling make half-precision maps no smaller, only slower to write or read.
        options = {"chunks": data.chunks, **hdf5plugin.Zstd(clevel=1)}
    dataset = file.create_dataset(
        data.path, shape=data.shape, dtype=data.dtype, fill_time="never", track_times=False, **options
    )
    for slot, payload in zip(data.slots, payloads, strict=True):
        if isinstance(payload, Quantised):
            dataset[slot] = payload.codes
        elif isinstance(payload, list):
            dataset[slot] = np.frombuffer(b"".join(payload), np.uint8)
        else:
            dataset[slot] = payload if isinstance(slot, int) else payload.reshape(-1)
        if sink.error is not None:  # a full disk: no use in going on
            return


def _lay_out(stream: str, recipe: Recipe, records: Sequence[Record], codec: str | None) -> _Data:
    """Shape of a stream's data set, the place of each clip in it, and the tables that tell a reader."""
    payloads: list[Any] = [r.arrays[stream] for r in records]
    dtype = np.dtype(recipe["dtype"]).newbyteorder("<")
    if recipe["layout"] == "fixed":
        shape = payloads[0].shape
        chunks = (1, 1, *shape[1:]) if codec else None
        beside = _scales(stream, payloads) if FIELD in recipe else {}
        return _Data(stream, (len(records), *shape), dtype, chunks, list(range(len(records))), beside)
    path = f"{stream}/data"
    if recipe["layout"] == "jpeg":
        frame_offset = _offsets([len(b) for files in payloads for b in files])
        offset = _offsets([len(files) for files in payloads])
        bounds = frame_offset[offset]
        tables = {f"{stream}/offset": offset, f"{stream}/frame_offset": frame_offset}
        chunks = None  # JPEG does not compress further
    else:
        bounds = _offsets([p.size for p in payloads])
        shapes = [p.shape for p in payloads]
        if len({len(s) for s in shapes}) > 1:
            raise StoreError(
                f"Stream {stream!r}: its clips differ in their number of dimensions; this shard is not written."
            )
        tables = {f"{stream}/offset": bounds, f"{stream}/shape": np.array(shapes, "<i8")}
        chunks = (min(int(bounds[-1]), _CHUNK // dtype.itemsize),) if codec and bounds[-1] else None
    slots: list[int | slice] = [slice(a, b) for a, b in pairwise(bounds.tolist())]
    return _Data(path, (int(bounds[-1]),), dtype, chunks, slots, tables)


def _scales(stream: str, payloads: Sequence[Quantised]) -> dict[str, NDArray[Any]]:
    """The tables beside the codes of a quantised stream."""
    values: dict[str, list[Any]] = {name: [getattr(p, name) for p in payloads] for name in SCALES}
    return {f"{FIELD}/{stream}/{name}": np.asarray(each, "<f4") for name, each in values.items()}


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype("<i8")


def _checks(payload: Payload, recipe: Recipe) -> NDArray[np.int64]:
    """Checksums of a clip: one a view of a fixed stream, else one."""
    if isinstance(payload, Quantised):
        return checksums(packed_views(payload).reshape(len(payload.codes), -1))
    flat = np.frombuffer(b"".join(payload), np.uint8) if isinstance(payload, list) else raw_bytes(payload)
    units = len(payload) if recipe["layout"] == "fixed" else 1
    return checksums(np.asarray(flat, np.uint8).reshape(units, -1))


def _tables(
    records: Sequence[Record], recipes: Mapping[str, Recipe], digests: dict[str, list[str]]
) -> dict[str, NDArray[Any]]:
    """The small tables that every shard has: one entry a clip."""
    dump = functools.partial(json.dumps, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    tables = {
        "clip": _text([r.clip_id for r in records]),
        "row": _text([dump(r.clip) for r in records]),  # in the manifest's order of columns
        "origin": _text([dump(r.origin, sort_keys=True) for r in records]),
    }
    for stream in digests:
        tables[f"{CHECKSUM}/{stream}"] = np.stack([_checks(r.arrays[stream], recipes[stream]) for r in records])
        tables[f"key/{stream}"] = _text([r.keys[stream] for r in records])
        tables[f"digest/{stream}"] = _text(digests[stream])
        frames = [r.frames[stream] for r in records]
        if len({len(f) for f in frames}) == 1:
            tables[f"frames/{stream}"] = np.stack(frames)
        else:
            tables[f"frames/{stream}/data"] = np.concatenate(frames)
            tables[f"frames/{stream}/offset"] = _offsets([len(f) for f in frames])
    return tables


def _text(values: Sequence[str]) -> NDArray[Any]:
    """Fixed-length UTF-8 strings, padded with zeros."""
    encoded = [v.encode() for v in values]
    width = max(1, *map(len, encoded))
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


@functools.cache
def _libraries() -> dict[str, str]:
    """Versions of the libraries that had a hand in the bytes."""
    found = {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_written(path: Path, digests: dict[str, list[str]]) -> None:
    """Open a finished file again and compare every clip's bytes with what was handed in."""
    shard = Shard.open(path)
    for stream, expected in digests.items():
        with StreamReader(shard, stream, unseen(shard, stream)) as reader:
            for row, wanted in enumerate(expected):
                try:
                    found = row_digest(reader.row(row))
                except DamagedShard:
                    found = ""
                if found != wanted:
                    raise StoreError(
                        f"{path.parent}: stream {stream!r} came back from the disk different from what was written "
                        f"(row {row}); this shard is dropped. Check disk and memory, then run the same command again."
                    )
