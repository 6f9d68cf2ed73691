"""Export a stream of vectors from a cache to an LMDB as RULSTM reads it: one float32 vector a frame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError, StoreError
from kdcache.exchange.exporting import Export, ExportReport
from kdcache.exchange.frame_keys import FrameKeys
from kdcache.exchange.importing import Row
from kdcache.exchange.lmdb_vectors import library
from kdcache.store.layout import StrPath
from kdcache.streams.axes import axes_of

CLIP_KEY = "{clip_id}_frame_{frame:010d}.jpg"

_PAGE = 4096
_BATCH = 32 * 2**20  # bytes of one transaction

Frames = NDArray[np.int32]


def export_lmdb(
    shards: StrPath,
    out: StrPath,
    *,
    stream: str,
    view: int = 0,
    first: int = 1,
    key: str = CLIP_KEY,
    progress: bool = True,
) -> ExportReport:
    """Export a stream of vectors to an LMDB in the folder ``out``, float32, with a ``manifest.csv`` beside it.

    Its column ``frames`` lists the source frames of each clip, so that ``import_lmdb(…, key=CLIP_KEY, at="frames")``
    reads the same numbers back. A second call goes on where the first was stopped.

    Args:
        shards: the cache.
        out: a new or empty folder, or one with part of the same export.
        stream: of vectors, [V, N, d], [V, d] or ragged [T, d]. A vector that was computed from several frames gets the
            number of the last.
        view: which of a fixed stream.
        first: number of a source's first frame.
        key: key of a frame: manifest columns in braces, and ``{frame}``.
        progress: show a bar, when standard error is a terminal.

    Raises:
        OptionError: unknown stream or view, maps, vectors whose frames are not known, a folder that holds other files,
            or the package ``lmdb`` is not installed.
        StoreError: a damaged cache, or two vectors with one key.
    """
    library()
    export = Export.open(shards, [stream], out)
    if export.has_views(stream) or view:
        export.check_view(view)
    keys = FrameKeys(key, list(export.rows.columns), first)
    count, size = _extent(export)
    export.claim_stream(to="lmdb", view=view, key=key, first=first)
    page = -(-4 * size // _PAGE) * _PAGE + _PAGE  # of a vector and its key, at most
    frames = export.frames(stream)
    writer = LmdbWriter(export.folder, page * count)
    try:
        for row, arrays in export.arrays(view if export.has_views(stream) else None, progress):
            for name, value in _entries(row, arrays[stream], stream, frames[row["clip_id"]], keys):
                writer.put(name, value)
        writer.commit()
    finally:
        writer.close()
    report = ExportReport(export.folder, len(export.rows), writer.written, writer.there, "vectors")
    return export.finish(report, frames)


def _extent(export: Export) -> tuple[int, int]:
    """Vectors of one view of all clips, and their length d; ``OptionError`` if the stream holds anything else."""
    (stream,), cache = export.streams, export.cache
    clips = export.rows["clip_id"].tolist()
    if export.has_views(stream):
        _, *inner, size = cache.shape(stream)
        if len(inner) < 2:
            return len(clips) * math.prod(inner), size
    elif axes_of(cache.recipe(stream)) == "TD":
        return sum(cache.length(stream, clip) for clip in clips), cache.read(stream, clips[:1])[0].shape[1]
    raise OptionError(
        f"Stream {stream!r} holds maps, not vectors [V, N, d], [V, d] or [T, d]; use `kdcache export npy`."
    )


def _entries(row: Row, array: NDArray[Any], stream: str, frames: Frames, keys: FrameKeys) -> list[tuple[bytes, bytes]]:
    try:
        values, numbers = _vectors(array, frames)
    except OptionError as error:
        raise OptionError(f"Stream {stream!r}, clip {row['clip_id']!r}: {error}") from error
    return [(keys.of(row, f), value.tobytes()) for f, value in zip(numbers.tolist(), values, strict=True)]


def _vectors(array: NDArray[Any], frames: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """One view of a clip, [d] or [N, d], as N vectors, float32 [N, d], and the frame that each stands for.

    Where a vector is computed from several frames, that is the last of them: frames are taken to be N groups of equal
    length, in order.

    Raises:
        OptionError: its frames are not known, or do not divide into N.
    """
    array = array.reshape(-1, array.shape[-1])
    count = len(array)
    if not len(frames) or len(frames) % count:
        raise OptionError(f"it has {count} vectors but {len(frames)} frame numbers; use `kdcache export npy`.")
    group = len(frames) // count
    return array.astype("<f4"), frames[group - 1 :: group]


class LmdbWriter:
    """An LMDB to which vectors are added in whole transactions; a killed run leaves those committed until then."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.folder = folder
        size = nbytes + 256 * 2**20 + sum(p.stat().st_size for p in folder.glob("data.mdb"))
        self._environment = library().open(str(folder), map_size=-(-size // _PAGE) * _PAGE)
        self._waiting: dict[bytes, bytes] = {}
        self._held = 0
        self.written = self.there = 0

    def put(self, key: bytes, value: bytes) -> None:
        """Add a vector; the same one again is nothing new.

        Raises:
            StoreError: the key holds another vector.
        """
        if self._waiting.setdefault(key, value) != value:
            raise self._clash(key)
        self._held += len(key) + len(value)
        if self._held >= _BATCH:
            self.commit()

    def commit(self) -> None:
        """Write what waits, to the disk."""
        with self._environment.begin(write=True) as transaction:
            for key, value in sorted(self._waiting.items()):
                if transaction.put(key, value, overwrite=False):
                    self.written += 1
                elif transaction.get(key) == value:
                    self.there += 1
                else:
                    raise self._clash(key)
        self._waiting, self._held = {}, 0

    def close(self) -> None:
        """Close the LMDB; what waits is dropped."""
        self._environment.close()

    def _clash(self, key: bytes) -> StoreError:
        return StoreError(
            f"{self.folder}: two different vectors for {key.decode()!r}; give clips keys of their own with {{clip_id}} "
            "in --key, or a new folder, and where one clip uses a frame twice use `kdcache export npy`."
        )
