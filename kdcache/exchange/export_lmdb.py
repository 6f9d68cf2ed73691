"""Export a stream of vectors from a cache to an LMDB as RULSTM reads it: one float32 vector a frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import KdcacheError, OptionError, StoreError, WriteError
from kdcache.exchange.exporting import Export, ExportReport
from kdcache.exchange.frame_keys import FrameKeys
from kdcache.exchange.importing import Row
from kdcache.exchange.lmdb_vectors import is_cut_off, library
from kdcache.files import unwritable
from kdcache.store.layout import StrPath
from kdcache.store.lock import locked
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
            number of the last; where none are known (an import that does not say), vectors are numbered 0 … T−1.
        view: which of a fixed stream.
        first: number of a source's first frame.
        key: key of a frame: manifest columns in braces, and ``{frame}``.
        progress: show a bar, when standard error is a terminal.

    Raises:
        OptionError: unknown stream or view, maps, vectors among which their frames do not divide, a folder that holds
            other files, or the package ``lmdb`` is not installed.
        StoreError: a damaged cache, or two vectors with one key.
    """
    library()
    export = Export.open(shards, [stream], out)
    if export.has_views(stream) or view:
        export.check_view(view)
    keys = FrameKeys(key, list(export.rows.columns), first)
    lengths, size = _extent(export)
    known = export.frames(stream)
    frames = {clip: _numbered(frames, lengths[clip], stream, clip) for clip, frames in known.items()}
    begun = export.begun
    export.claim_stream(to="lmdb", view=view, key=key, first=first)
    page = -(-4 * size // _PAGE) * _PAGE + _PAGE  # of a vector and its key, at most
    with locked(export.folder):
        writer = LmdbWriter(export.folder, page * sum(lengths.values()))
        try:
            for row, arrays in export.arrays(view if export.has_views(stream) else None, progress):
                for name, value in _entries(row, arrays[stream], frames[row["clip_id"]], keys):
                    writer.put(name, value)
            writer.commit()
        except KdcacheError as error:
            if not begun and not isinstance(error, WriteError):  # once there is space, the same call goes on
                writer.remove()
                export.unclaim()
            raise
        finally:
            writer.close()
    report = ExportReport(export.folder, len(export.rows), writer.written, writer.there, "vectors")
    if unknown := sum(not len(one) for one in known.values()):
        report.notes.append(
            f"Of {unknown} clips the cache knows no frame numbers: their vectors are numbered from 0, plus --first "
            f"{first}"
        )
    return export.finish(report, frames)


def _extent(export: Export) -> tuple[dict[str, int], int]:
    """Vectors of one view of each clip, and their length d; ``OptionError`` if the stream holds anything else."""
    (stream,), cache = export.streams, export.cache
    clips = export.rows["clip_id"].tolist()
    if export.has_views(stream):
        _, *inner, size = cache.shape(stream)
        if len(inner) < 2:
            return dict.fromkeys(clips, math.prod(inner)), size
    elif axes_of(cache.recipe(stream)) == "TD":
        return {clip: cache.length(stream, clip) for clip in clips}, cache.read(stream, clips[:1])[0].shape[1]
    raise OptionError(
        f"Stream {stream!r} holds maps, not vectors [V, N, d], [V, d] or [T, d]; use `kdcache export npy`."
    )


def _numbered(frames: Frames, count: int, stream: str, clip: str) -> Frames:
    """The source frames of a clip, which divide among its ``count`` vectors; 0 … where none are known."""
    if not len(frames):
        return np.arange(count, dtype=np.int32)
    if len(frames) % count:
        raise OptionError(
            f"Stream {stream!r}, clip {clip!r}: it has {count} vectors but {len(frames)} frame numbers; use "
            "`kdcache export npy`."
        )
    return frames


def _entries(row: Row, array: NDArray[Any], frames: Frames, keys: FrameKeys) -> list[tuple[bytes, bytes]]:
    """Keys and vectors of one view of a clip, [d] or [N, d].

    Where a vector is computed from several frames, its number is the last of them: frames are taken to be N groups of
    equal length, in order.
    """
    values = array.reshape(-1, array.shape[-1]).astype("<f4")
    group = len(frames) // len(values)
    numbers = frames[group - 1 :: group].tolist()
    return [(keys.of(row, f), value.tobytes()) for f, value in zip(numbers, values, strict=True)]


class LmdbWriter:
    """An LMDB to which vectors are added in whole transactions; a killed run leaves those committed until then."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.folder = folder
        size = nbytes + 256 * 2**20 + sum(p.stat().st_size for p in folder.glob("data.mdb"))
        file = folder / "data.mdb"
        begun = file.exists() and file.stat().st_size > 0
        try:
            # LMDB's own lock is a mapped file: where a disk has no page left for it, opening ends the process (SIGBUS).
            with self._storing():
                self._environment = library().open(str(folder), map_size=-(-size // _PAGE) * _PAGE, lock=False)
        except KdcacheError:
            if not begun:  # the beginning of a header, which is no LMDB
                file.unlink(missing_ok=True)
            raise
        if is_cut_off(file, self._environment):
            self.close()
            raise StoreError(f"{file}: the file is cut off; delete {folder} and export again.")
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
        with self._storing(), self._environment.begin(write=True) as transaction:
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

    def remove(self) -> None:
        """Close the LMDB and delete its files."""
        self.close()
        for name in ("data.mdb", ".lock"):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Inside, what LMDB raises is one sentence; a transaction that fails leaves those before it."""
        file, lmdb = self.folder / "data.mdb", library()
        try:
            yield
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError) as error:
            raise StoreError(f"{file}: cannot be added to ({error}); delete {self.folder} and export again.") from error
        except lmdb.Error as error:  # a write that was cut short is an input/output error to it
            raise unwritable(file, str(error), "free some space, or check the disk") from error

    def _clash(self, key: bytes) -> StoreError:
        return StoreError(
            f"{self.folder}: two different vectors for {key.decode()!r}; give clips keys of their own with {{clip_id}} "
            "in --key, or a new folder, and where one clip uses a frame twice use `kdcache export npy`."
        )
