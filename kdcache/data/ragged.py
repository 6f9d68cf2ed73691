"""Cached sequences of vectors that differ in length: packed in the device's memory when they fit, else read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.stream import CHUNK, CachedStream, MemoryBudget, check_available
from kdcache.errors import StoreError
from kdcache.store import Cache


class RaggedStream:
    """A stream of sequences ``[T_i, D]`` of a cache: clips are rows, in the order of ``clip_ids``.

    ``fetch`` pads behind their ends with zeros to the longest of the rows asked for; ``lengths`` tells how much of each
    is its own. In memory the sequences lie one behind the other, without padding. There is one view.

    Args:
        cache: where arrays are read.
        name: of the stream.
        clip_ids: of all rows.
        device: on which batches are wanted.
        budget: shared with the other streams of the run.
        available: which rows are cached, bool ``[clips]``; none: all.
        order: permutation of the stored axes that gives ``TD``; none: as they lie.

    Raises:
        StoreError: a clip without a vector, or clips whose vectors have different numbers.
    """

    views = 1

    def __init__(
        self,
        cache: Cache,
        name: str,
        clip_ids: Sequence[str],
        device: torch.device,
        budget: MemoryBudget,
        available: Tensor | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        self.cache, self.name, self.device, self.budget = cache, name, device, budget
        self.clip_ids, self.available = list(clip_ids), available
        self.order = None if order is None else list(order)
        self.dtype = torch.from_numpy(np.empty(0, cache.dtype(name))).dtype
        self.rows = torch.arange(len(self.clip_ids)) if available is None else available.nonzero()[:, 0]
        self.lengths, width = self._measured()
        """Int64 ``[clips]``, 0 where there is no array."""
        self.shape: tuple[int, ...] = (int(self.lengths.max()), width)
        self._starts = self.lengths.cumsum(0) - self.lengths  # of each row in the packed vectors
        self._resident: bool | None = None
        self._data: Tensor | None = None  # [Σ T_i, D]
        self._mapped: dict[Callable[[Tensor], Tensor], CachedStream] = {}

    def _measured(self) -> tuple[Tensor, int]:
        """Length of each row, and D."""
        clips = [self.clip_ids[row] for row in self.rows.tolist()]
        found = self.cache.shapes(self.name, clips)
        shapes = found if self.order is None else [tuple(shape[axis] for axis in self.order) for shape in found]
        where = f"{self.cache.path}: clip {{!r}}: stream {self.name!r}"
        for clip, shape in zip(clips, shapes, strict=True):
            if 0 in shape:
                raise StoreError(f"{where.format(clip)} has no vector; import it again without that clip.")
            if shape[1] != shapes[0][1]:
                raise StoreError(
                    f"{where.format(clip)} has vectors of {shape[1]} numbers, clip {clips[0]!r} of {shapes[0][1]}; "
                    "import features of one network."
                )
        lengths = torch.zeros(len(self.clip_ids), dtype=torch.int64)
        lengths[self.rows] = torch.tensor([shape[0] for shape in shapes])
        return lengths, shapes[0][1]

    @property
    def nbytes(self) -> int:
        """Size of the whole."""
        return int(self.lengths.sum()) * self.shape[1] * self.dtype.itemsize

    @property
    def resident(self) -> bool:
        """Whether it lies, or is going to lie, in the device's memory; decided when it is first asked."""
        if self._resident is None:
            self._resident = self.budget.reserve(self.nbytes)
        return self._resident

    def place(self, resident: bool) -> None:
        """Decide where it lies, for a caller that has reserved its bytes together with others'."""
        self._resident = resident

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes of the budget are left beside the stream."""
        return self.resident and nbytes <= self.budget.free_bytes

    def map(self, fn: Callable[[Tensor], Tensor]) -> CachedStream:
        """A stream of one shape: each clip's own vectors ``[T_i, D]``, without padding, through a fixed function.

        Raises:
            ValueError: a function whose result depends on the length.
        """
        if fn not in self._mapped:
            arrays = _MappedArrays(self, fn)
            self._mapped[fn] = CachedStream(arrays, self.name, self.clip_ids, self.device, self.budget, self.available)
        return self._mapped[fn]

    def fetch(self, rows: Tensor, views: Tensor, keys: Tensor) -> Tensor:
        """``[b, T, D]`` as stored, T the longest of these rows, on the device if resident, else in host memory."""
        check_available(self.name, self.available, rows)
        lengths = self.lengths[rows]
        if not self.resident:
            return self._padded(self.read(rows), lengths)
        if self._data is None:
            self._data = self._load()
        step = torch.arange(int(lengths.max()))
        own = step < lengths[:, None]
        index = torch.where(own, self._starts[rows, None] + step, 0).to(self.device, non_blocking=True)
        return self._data[index].masked_fill_(~own[..., None].to(self.device, non_blocking=True), 0)

    def to_device(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return fetched.to(self.device, non_blocking=True).float()

    def read(self, rows: Tensor) -> list[Tensor]:
        """Each row's own vectors ``[T_i, D]`` from the shards, as stored."""
        read = self.cache.read(self.name, [self.clip_ids[row] for row in rows.tolist()])
        arrays = [torch.from_numpy(array) for array in read]
        return arrays if self.order is None else [array.permute(self.order) for array in arrays]

    def _load(self) -> Tensor:
        data = torch.empty((int(self.lengths.sum()), self.shape[1]), dtype=self.dtype, device=self.device)
        for rows in torch.split(self.rows, CHUNK):
            for row, array in zip(rows.tolist(), self.read(rows), strict=True):
                start = int(self._starts[row])
                data[start : start + len(array)] = array.to(data)
        return data

    def _padded(self, arrays: Sequence[Tensor], lengths: Tensor) -> Tensor:
        shape = (len(arrays), int(lengths.max()), self.shape[1])
        out = torch.zeros(shape, dtype=self.dtype, pin_memory=self.device.type == "cuda")
        for place, array in zip(out, arrays, strict=True):
            place[: len(array)] = array
        return out


class _MappedArrays:
    """The clips of a ragged stream behind a function to one shape, as ``CachedStream`` reads arrays: one view each."""

    def __init__(self, stream: RaggedStream, fn: Callable[[Tensor], Tensor]) -> None:
        self.stream, self.fn = stream, fn
        longest, width = stream.shape
        shapes = {tuple(fn(torch.zeros(length, width)).shape) for length in (1, longest)}
        if len(shapes) > 1:
            raise ValueError(f"{stream.name}: the clips differ in length, and so does what is made of them")
        self._shape = shapes.pop()
        self._row = {clip: row for row, clip in enumerate(stream.clip_ids)}

    def shape(self, stream: str) -> tuple[int, ...]:
        return (1, *self._shape)

    def dtype(self, stream: str) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: Any = None) -> NDArray[Any]:
        rows = torch.tensor([self._row[clip] for clip in clip_ids])
        made = np.stack([self.fn(array.float()).numpy() for array in self.stream.read(rows)])
        if out is None:
            return made
        out[...] = made
        return np.asarray(out)
