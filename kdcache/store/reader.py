"""Reading shards: where things lie is looked up once, rows are then taken by byte offset straight into the output.

Nothing is held open between calls: a ``Shard`` is a path and some numbers, so it survives fork, spawn, pickling and
threads as it is. Opening a file costs microseconds against the hundreds that a row takes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import StoreError
from kdcache.store.checksum import checksums
from kdcache.store.hdf5_guard import MALFORMED, check_packed
from kdcache.store.layout import DamagedShard, Payload, damaged, row_digest
from kdcache.store.quantised import Quantised
from kdcache.store.shard import Shard, open_shard, replaced
from kdcache.store.texts import strings

_GROUP = 2**20  # bytes that are read before they are checked


class StreamReader:
    """One stream of one shard, opened for the length of a ``with`` block.

    Args:
        shard: where it lies.
        stream: its name.
        seen: which clip-views have been checked (``unseen`` makes it); those read for the first time are checked
            against the digests in the shard, and marked. Without it nothing is checked.
    """

    def __init__(self, shard: Shard, stream: str, seen: bytearray | None = None) -> None:
        self.shard = shard
        self.stream = stream
        self.stored = shard.stored(stream)
        self.seen = seen
        self._raw: int | None = None  # descriptor, for what lies in the file as it is
        self._file: Any = None
        self._data: Any = None

    def __enter__(self) -> Self:
        path = self.shard.path
        try:
            if self.stored.start is not None or self.stored.packing is not None:
                self._raw = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if self.stored.start is None:
                import hdf5plugin  # noqa: F401  (registers the zstd filter)

                self._file = h5py.File(path, "r", locking=False)
                self._data = self._file[self.stored.path]
            its = os.stat(path if self._raw is None else self._raw)
            if its.st_size != self.shard.size:
                raise damaged(path, f"it has {its.st_size} bytes where it had {self.shard.size}")
            if self.shard.version is not None and its.st_mtime_ns != self.shard.version[1]:
                raise replaced(path)
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
        if self._raw is not None:
            os.close(self._raw)
            self._raw = None
        if self._file is not None:
            self._file.close()

    def row(self, row: int) -> Payload:
        """One clip as it was handed in: an array, or for jpeg the list of files."""
        payload = self._payload(row)
        if self._due([(row, 0)], None):
            if self.stored.checks is None:
                self._check_digest(row, payload)
            elif isinstance(payload, Quantised):
                self._check([(row, 0)], None, packed_views(payload)[None])
            else:
                flat = np.frombuffer(b"".join(payload), np.uint8) if isinstance(payload, list) else payload.reshape(-1)
                self._check([(row, 0)], None, flat.view(np.uint8)[None])
        return payload

    def _payload(self, row: int) -> Payload:
        """``row``, unchecked."""
        stored = self.stored
        if stored.packing is not None and stored.errors is not None:
            each = [stored.packing.parts(self._packed(row, view)) for view in range(stored.shape[0])]
            scale, offset, codes = (np.stack(parts) for parts in zip(*each, strict=True))
            return Quantised(codes, scale, offset, float(stored.errors[row]))
        if stored.bounds is None:
            out = np.empty((1, *stored.shape), stored.dtype)
            if stored.start is None:
                self._unpack_rows(None, out, [row], [0])
            else:
                self._fill(stored.start + row * out.nbytes, out.reshape(-1).view(np.uint8).data)
            return out.reshape(stored.shape)
        first, stop = int(stored.bounds[row]), int(stored.bounds[row + 1])
        flat = np.empty(stop - first, stored.dtype)
        if len(flat) and stored.start is not None:
            self._fill(stored.start + first * flat.itemsize, flat.view(np.uint8).data)
        elif len(flat):
            self._unpack(row, flat, np.s_[first:stop], None, ((first,), (stop - 1,)))
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
        if self.stored.packing is not None:
            self._decoded(rows, places, out, view)
            return
        flat = out.reshape(len(out), -1).view(np.uint8)
        start = self.stored.start
        read = partial(self._unpack_rows, view, out) if start is None else partial(self._fill_rows, start, view, flat)
        self._read_checked(rows, places, view, flat, read)

    def _read_checked(
        self,
        rows: Sequence[int],
        places: Sequence[int],
        view: int | None,
        flat: NDArray[np.uint8],
        read: Callable[[Sequence[int], Sequence[int]], None],
    ) -> None:
        """Read rows into ``flat[place]``, and check those that are due by groups that the processor's caches hold."""
        if self.seen is None or 0 not in self.seen:
            read(rows, places)
            return
        group = max(1, _GROUP // flat.shape[1])
        for start in range(0, len(rows), group):
            some, there = rows[start : start + group], places[start : start + group]
            due = self._due(list(zip(some, there, strict=True)), view)
            read(some, there)
            if due:
                self._check(due, view, flat)

    def _unpack_rows(self, view: int | None, out: NDArray[Any], rows: Sequence[int], places: Sequence[int]) -> None:
        """Compressed clips, or one view of each, into ``out[place]``; unchecked."""
        rest = (0,) * (len(self.stored.shape) - 1)
        first, last = (0, self.stored.shape[0] - 1) if view is None else (view, view)
        for row, place in zip(rows, places, strict=True):
            selection = row if view is None else (row, view)
            self._unpack(row, out, selection, np.s_[place], ((row, first, *rest), (row, last, *rest)))

    def _fill_rows(
        self, start: int, view: int | None, flat: NDArray[np.uint8], rows: Sequence[int], places: Sequence[int]
    ) -> None:
        """Clips that lie as they are from byte ``start`` on, or one view of each, into ``flat[place]``; unchecked.

        A clip of 40 kB is copied in 6 µs, so nothing is called here for each but the system.
        """
        assert self._raw is not None
        raw, read, size, data = self._raw, os.preadv, flat.shape[1], flat.reshape(-1).data
        step, first = (size, start) if view is None else (size * self.stored.shape[0], start + view * size)
        try:
            for row, place in zip(rows, places, strict=True):
                piece = data[place * size : (place + 1) * size]
                if read(raw, (piece,), first + row * step) != size:
                    self._fill(first + row * step, piece)
        except StoreError:  # an OSError, too
            raise
        except OSError as error:
            raise self._unreadable(error) from error

    def _decoded(self, rows: Sequence[int], places: Sequence[int], out: NDArray[Any], view: int | None) -> None:
        """``into`` of a quantised stream."""
        from kdcache.store.decoding import decode  # brings numba, which other streams do without

        packing = self.stored.packing
        assert packing is not None
        packed, values = np.empty((1, packing.nbytes), np.uint8), np.empty(math.prod(packing.shape), np.float32)
        for row, place in zip(rows, places, strict=True):
            for number in range(self.stored.shape[0]) if view is None else (view,):
                self.pack([row], [0], packed, number)
                scale, offset, codes = packing.parts(packed[0])
                decode(codes, scale, offset, out[place, number] if view is None else out[place], values)

    def pack(self, rows: Sequence[int], places: Sequence[int], out: NDArray[np.uint8], view: int) -> None:
        """Read one view of clips of a quantised stream as it is stored into ``out[place]``; see ``Packing``."""

        def read(some: Sequence[int], there: Sequence[int]) -> None:
            for row, place in zip(some, there, strict=True):
                self._packed(row, view, out[place])

        self._read_checked(rows, places, view, out, read)

    def _packed(self, row: int, view: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """One view of a quantised stream as ``Packing`` says, unchecked."""
        stored = self.stored
        assert stored.packing is not None
        size, nbytes = stored.packing.scale_bytes, stored.packing.nbytes
        packed = np.empty(nbytes, np.uint8) if out is None else out
        number = row * stored.shape[0] + view
        for place, at in enumerate(stored.scales_at):
            self._fill(at + number * size, packed[place * size : (place + 1) * size].data)
        codes = packed[2 * size :]
        if stored.start is None:
            first = (row, view, *(0 for _ in stored.packing.shape))
            self._unpack(row, codes.reshape(stored.packing.shape), (row, view), None, (first, first))
        else:
            self._fill(stored.start + number * codes.nbytes, codes.data)
        return packed

    def _due(self, rows: list[tuple[int, int]], view: int | None) -> list[tuple[int, int]]:
        """Those of (row, place) of which the view, or any, is still to be checked."""
        seen, units = self.seen, self.stored.units
        if seen is None:
            return []
        if view is not None or units == 1:
            number = view or 0
            return [(row, place) for row, place in rows if not seen[row * units + number]]
        return [(row, place) for row, place in rows if 0 in seen[row * units : (row + 1) * units]]

    def _check(self, due: list[tuple[int, int]], view: int | None, flat: NDArray[np.uint8]) -> None:
        """Compare the bytes of rows at their places in ``flat`` with the checksums stored beside them."""
        assert self.seen is not None
        units, checks = self.stored.units, self.stored.checks
        if checks is None:
            for row, _ in due:
                self._check_digest(row, self._payload(row))
            return
        read = units if view is None else 1
        pieces = [place * read + unit for _, place in due for unit in range(read)]
        found = checksums(flat.reshape(len(flat) * read, -1), pieces).reshape(-1, read)
        expected = checks[[row for row, _ in due]]
        wrong = (found != (expected if view is None else expected[:, view : view + 1])).any(axis=1)
        if wrong.any():
            raise self._broken(due[int(wrong.argmax())][0], "its bytes have changed since they were written")
        first = view or 0
        for row, _ in due:
            self.seen[row * units + first : row * units + first + read] = b"\1" * read

    def _check_digest(self, row: int, payload: Payload) -> None:
        """Shards of 0.1 have no checksums: the clip, all its views, is held against its SHA-256."""
        assert self.seen is not None
        assert self.stored.digests is not None
        if row_digest(payload).encode() != self.stored.digests[row]:
            raise self._broken(row, "its bytes have changed since they were written")
        units = self.stored.units
        self.seen[row * units : (row + 1) * units] = b"\1" * units

    def _broken(self, row: int, what: str) -> DamagedShard:
        """The error for one clip, by name."""
        path = self.shard.path
        clip = strings(path, open_shard(path)[1], "clip")[row]
        return damaged(path, f"stream {self.stream!r} of clip {clip!r} (row {row}): {what}")

    def _fill(self, offset: int, buffer: memoryview) -> None:
        """Read the file's bytes from ``offset`` on until the buffer is full."""
        assert self._raw is not None
        try:
            done = got = os.preadv(self._raw, (buffer,), offset)
            while got and done < len(buffer):  # one call gives at most 2 GiB
                got = os.preadv(self._raw, (buffer[done:],), offset + done)
                done += got
        except OSError as error:
            raise self._unreadable(error) from error
        if done < len(buffer):
            raise damaged(self.shard.path, f"stream {self.stream!r} ends before its last clip")

    def _unreadable(self, error: OSError) -> DamagedShard:
        return damaged(self.shard.path, f"cannot be read ({error})")

    def _unpack(
        self, row: int, out: NDArray[Any], selection: Any, place: Any, ends: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> None:
        """Decompress a selection of the data set, from its first to its last element, into ``out[place]``."""
        try:
            check_packed(self.shard.path, self._data, *ends)
            self._data.read_direct(out, selection, place)
        except MALFORMED as error:
            raise self._broken(row, "its bytes cannot be decompressed") from error


def unseen(shard: Shard, stream: str) -> bytearray:
    """The marks of a stream of which nothing has been checked: a byte for each clip-view."""
    return bytearray(shard.clips * shard.stored(stream).units)


def packed_views(payload: Quantised) -> NDArray[np.uint8]:
    """A quantised clip as ``Packing`` orders its views, flat."""
    parts = (payload.scale, payload.offset, payload.codes)
    views = [np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8) for part in parts]
    return np.concatenate(views, axis=1).reshape(-1)
