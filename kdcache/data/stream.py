"""Cached features as numbered rows: kept in the device's memory when they fit, else read from the shards."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import OptionError
from kdcache.methods.contract import InputStream, lengths_of
from kdcache.numerics import of_stack
from kdcache.recipe import Recipe

CHUNK = 64  # clips read at once when a stream is loaded whole
PIECE = 2 << 20  # bytes read at once of arrays that something is computed of


class Arrays(Protocol):
    """Where a stream of one shape reads its arrays."""

    def shape(self, stream: str) -> tuple[int, ...]: ...
    def dtype(self, stream: str) -> np.dtype[Any]: ...
    def read(self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: Any = None) -> Any: ...


class Reader(Arrays, Protocol):
    """What inputs need of ``kdcache.store.Cache``."""

    path: Path
    clips: pd.DataFrame
    streams: list[str]

    def recipe(self, stream: str) -> Recipe: ...
    def indexed(self, stream: str) -> NDArray[np.bool_]: ...
    def length(self, stream: str, clip_id: str) -> int: ...
    def frames(self, stream: str, clip_ids: Sequence[str]) -> list[NDArray[np.int32]]: ...
    def read_frames(self, stream: str, clip_id: str, frames: NDArray[np.integer[Any]]) -> NDArray[Any]: ...


def is_ragged(recipe: Recipe) -> bool:
    """Whether the clips of a stream differ in shape."""
    return bool(recipe["layout"] == "ragged")


def view_count(cache: Reader, stream: str) -> int:
    """How many views a stream of features has; one where its clips differ in length."""
    return 1 if is_ragged(cache.recipe(stream)) else cache.shape(stream)[0]


class MemoryBudget:
    """Bytes of the device's memory that the streams of a run and what is computed from them may fill together."""

    def __init__(self, nbytes: float) -> None:
        self.free_bytes = int(nbytes)

    def reserve(self, nbytes: int) -> bool:
        """Take so many bytes if they are free."""
        if nbytes > self.free_bytes:
            return False
        self.free_bytes -= nbytes
        return True


def check_available(name: str, available: Tensor | None, rows: Tensor) -> None:
    """``ValueError`` for rows of which a stream has no array: slots beside them hold other clips."""
    if bool((rows < 0).any()) or not (available is None or bool(available[rows].all())):
        raise ValueError(f"{name}: rows without an array were asked for; leave out those that are not available")


class CachedStream:
    """A stream of a cache: clips are rows, in the order of ``clip_ids``.

    If the whole of it (every view, as stored, after ``fn``) fits into the budget, it is loaded onto the device when
    it is first used; else each batch is read from the shards.

    Args:
        cache: where arrays are read.
        name: of the stream.
        clip_ids: of all rows.
        device: on which batches are wanted.
        budget: shared with the other streams of the run.
        available: which rows are cached, bool ``[clips]``; none: all.
        view_of: which cached view is shown as each view; none: as they lie.
        order: permutation of the stored axes of a view that gives the input's; none: as they lie.
        fn: fixed function through which each array passes, float32 in and out; several at once, as they are stored,
            where ``of_stack`` says how; see ``map``.
    """

    def __init__(
        self,
        cache: Arrays,
        name: str,
        clip_ids: Sequence[str],
        device: torch.device,
        budget: MemoryBudget,
        available: Tensor | None = None,
        view_of: Sequence[int] | None = None,
        order: Sequence[int] | None = None,
        fn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.cache, self.name, self.device, self.budget, self.fn = cache, name, device, budget, fn
        self.clip_ids, self.available = list(clip_ids), available
        self.dtype = torch.from_numpy(np.empty(0, cache.dtype(name))).dtype
        cached_views, *stored = cache.shape(name)
        self.view_of = list(range(cached_views)) if view_of is None else list(view_of)
        self.views, self.order = len(self.view_of), None if order is None else list(order)
        self.stored = tuple(stored)
        shown = torch.zeros(self.stored) if self.order is None else torch.zeros(self.stored).permute(self.order)
        self.shape = tuple(shown.shape) if fn is None else tuple(fn(shown).shape)
        self.kept = self.shape
        """Shape of what is kept and fetched of an array."""
        self.slot_of = torch.arange(len(self.clip_ids)) if available is None else available.cumsum(0) - 1
        self._resident: bool | None = None
        self._data: Tensor | None = None  # [available clips × views, *shape]
        self._mapped: dict[Callable[[Tensor], Tensor], CachedStream] = {}

    @property
    def nbytes(self) -> int:
        """Size of the whole."""
        clips = len(self.clip_ids) if self.available is None else int(self.available.sum())
        return clips * self.views * math.prod(self.kept) * self.dtype.itemsize

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
        """The same stream with every array passed once through a fixed function (float32 in and out, one array
        each)."""
        if fn not in self._mapped:
            args = (self.cache, self.name, self.clip_ids, self.device, self.budget, self.available)
            first = self.fn
            both = fn if first is None else lambda array: fn(first(array))
            self._mapped[fn] = CachedStream(*args, self.view_of, self.order, both)
        return self._mapped[fn]

    def fetch(self, rows: Tensor, views: Tensor, keys: Tensor) -> Tensor:
        """The given view of each row, as stored, on the device if resident, else in host memory (pinned for a GPU)."""
        check_available(self.name, self.available, rows)
        if not self.resident:
            return self._read(rows, views)
        if self._data is None:
            self._data = self._load()
        slots = self.slot_of[rows] * self.views + views
        return self._data.index_select(0, slots.to(self.device, non_blocking=True))

    def to_device(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return fetched.to(self.device, non_blocking=True).float()

    def _load(self) -> Tensor:
        every = torch.arange(len(self.clip_ids)) if self.available is None else self.available.nonzero()[:, 0]
        data = torch.empty((len(every) * self.views, *self.kept), dtype=self.dtype, device=self.device)
        for rows in torch.split(every, CHUNK):
            for view in range(self.views):
                slots = self.slot_of[rows].to(self.device) * self.views + view
                data[slots] = self._read(rows, torch.full_like(rows, view)).to(data)
        return data

    def _read(self, rows: Tensor, views: Tensor) -> Tensor:
        """From the shards, one read for each view that occurs."""
        out = torch.empty((len(rows), *self.kept), dtype=self.dtype, pin_memory=self.device.type == "cuda")
        for view in np.unique(views.numpy()).tolist():
            places = (views == view).nonzero()[:, 0]
            clips = [self.clip_ids[row] for row in rows[places].tolist()]
            cached_view = self.view_of[view]
            every = len(places) == len(rows)
            if self.fn is None and self.order is None and every:
                self.cache.read(self.name, clips, cached_view, out=out.numpy())
                continue
            some = max(1, PIECE // max(1, math.prod(self.stored) * self.dtype.itemsize))
            buffer = torch.empty((min(some, len(clips)), *self.stored), dtype=self.dtype)
            for first in range(0, len(clips), some):  # a few at once: they stay in the CPU's cache
                piece = clips[first : first + some]
                read = buffer[: len(piece)]
                self.cache.read(self.name, piece, cached_view, out=read.numpy())
                if self.order is not None:
                    read = read.permute(0, *(1 + axis for axis in self.order))
                if self.fn is not None:
                    at_once = of_stack(self.fn)
                    read = at_once(read) if at_once else torch.stack([self.fn(array.float()) for array in read])
                if every:
                    out[first : first + some] = read
                else:
                    out[places[first : first + some]] = read.to(out.dtype)
        return out


class Part(InputStream, Protocol):
    """A stream that can be joined with others: ``CachedStream``, ``RaggedStream``."""

    name: str
    clip_ids: list[str]
    device: torch.device
    budget: MemoryBudget

    @property
    def nbytes(self) -> int: ...
    def place(self, resident: bool) -> None: ...
    def map(self, fn: Callable[[Tensor], Tensor]) -> CachedStream: ...


class JoinedStream:
    """Several streams of the same clips as one: their vectors ``[..., d_i]`` side by side, ``[..., Σ d_i]``.

    Sequences that differ from clip to clip are joined where each clip has as many vectors in every stream."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        self.lengths = lengths_of(first)
        for part in self.parts[1:]:
            _check_lengths(first, part)
            if part.shape[:-1] != first.shape[:-1] or part.views != first.views:
                raise OptionError(
                    f"stream={first.name},{part.name}: {first.views} views of {list(first.shape)} and {part.views} of "
                    f"{list(part.shape)} cannot be joined; extract both with the same levels and number of views."
                )
        self.shape = (*first.shape[:-1], sum(part.shape[-1] for part in self.parts))
        self.views = first.views
        self.available = first.available
        self._resident: bool | None = None
        self._mapped: dict[Callable[[Tensor], Tensor], JoinedStream] = {}

    @property
    def nbytes(self) -> int:
        """Size of the whole."""
        return sum(part.nbytes for part in self.parts)

    @property
    def resident(self) -> bool:
        """Whether all of it lies in the device's memory: all parts do, or none."""
        if self._resident is None:
            self._resident = self.parts[0].budget.reserve(self.nbytes)
            for part in self.parts:
                part.place(self._resident)
        return self._resident

    def fits(self, nbytes: int) -> bool:
        """As of one stream."""
        return self.resident and nbytes <= self.parts[0].budget.free_bytes

    def map(self, fn: Callable[[Tensor], Tensor]) -> JoinedStream:
        """Each part with its arrays passed through a fixed function."""
        if fn not in self._mapped:
            self._mapped[fn] = JoinedStream([part.map(fn) for part in self.parts])
        return self._mapped[fn]

    def fetch(self, rows: Tensor, views: Tensor, keys: Tensor) -> Tensor:
        """As of one stream; stored types are widened to the widest."""
        assert self.resident is not None
        fetched = [part.fetch(rows, views, keys) for part in self.parts]
        dtype, first = functools.reduce(torch.promote_types, (f.dtype for f in fetched)), fetched[0]
        shape = (*first.shape[:-1], sum(f.shape[-1] for f in fetched))
        pinned = first.device.type == "cpu" and self.parts[0].device.type == "cuda"  # or copying it would wait
        out = torch.empty(shape, dtype=dtype, device=first.device, pin_memory=pinned)
        return torch.cat([f.to(dtype) for f in fetched], dim=-1, out=out)

    def to_device(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return self.parts[0].to_device(fetched)


def _check_lengths(first: Part, part: Part) -> None:
    """``OptionError`` for two streams of which a clip has different numbers of vectors."""
    lengths, others = lengths_of(first), lengths_of(part)
    if lengths is None and others is None:
        return
    if lengths is None or others is None:
        one, several = (part, first) if others is None else (first, part)
        raise OptionError(
            f"stream={first.name},{part.name}: all clips of {one.name} have one length, those of {several.name} "
            "differ, so they cannot be joined; import both alike."
        )
    differing = (lengths != others).nonzero()
    if len(differing):
        row = int(differing[0, 0])
        raise OptionError(
            f"stream={first.name},{part.name}: clip {first.clip_ids[row]!r} has {int(lengths[row])} and "
            f"{int(others[row])} vectors, so they cannot be joined; import features at the same rate."
        )
