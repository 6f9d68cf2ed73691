"""Cached arrays → batches on the device: held there whole when they fit, else read ahead from the shards."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import OptionError
from kdcache.methods.contract import Batch, Items
from kdcache.prefetch import prefetch

PREFETCH = 3  # batches that wait ready while the device computes
CHUNK = 64  # clips read at once when a stream is loaded whole

Plan = list[tuple[Tensor, Tensor]]
"""Of each batch: the items, int64 ``[b]``, and the view of each."""


class Reader(Protocol):
    """What is needed of ``kdcache.store.Cache``."""

    def shape(self, stream: str) -> tuple[int, ...]: ...
    def dtype(self, stream: str) -> np.dtype[Any]: ...
    def read(self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: Any = None) -> Any: ...


class CachedStream:
    """A stream of a cache: clips are rows, in the order of ``clip_ids``.

    If the whole of it (every view, as stored, after ``reduce``) fits into ``budget`` bytes, it is loaded onto the
    device when it is first used; else each batch is read from the shards.
    """

    def __init__(
        self,
        cache: Reader,
        name: str,
        clip_ids: Sequence[str],
        device: torch.device,
        budget: float,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.cache, self.name, self.device, self.budget, self.reduce = cache, name, device, budget, reduce
        self.clip_ids = list(clip_ids)
        self.dtype = torch.from_numpy(np.empty(0, cache.dtype(name))).dtype
        self.views, *stored = cache.shape(name)
        self.stored = tuple(stored)
        self.shape = self.stored if reduce is None else tuple(reduce(torch.zeros(self.stored)).shape)
        self._data: Tensor | None = None  # [clips × views, *shape]
        self._reduced: dict[Callable[[Tensor], Tensor], CachedStream] = {}

    @property
    def nbytes(self) -> int:
        """Size of the whole."""
        return len(self.clip_ids) * self.views * math.prod(self.shape) * self.dtype.itemsize

    @property
    def held(self) -> bool:
        """Whether it lies, or is going to lie, in the device's memory."""
        return self.nbytes <= self.budget

    @property
    def room(self) -> int:
        """Bytes of the budget that it leaves."""
        return int(self.budget - (self.nbytes if self.held else 0))

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> CachedStream:
        """The same stream with every map passed once through a fixed function (float32 in and out, one map each)."""
        if reduce not in self._reduced:
            self._reduced[reduce] = CachedStream(self.cache, self.name, self.clip_ids, self.device, self.budget, reduce)
        return self._reduced[reduce]

    def fetch(self, rows: Tensor, views: Tensor) -> Tensor:
        """The given view of each row, as stored, on the device if held, else in host memory (pinned for a GPU)."""
        if not self.held:
            return self._read(rows, views)
        if self._data is None:
            self._data = self._load()
        return self._data.index_select(0, (rows * self.views + views).to(self.device, non_blocking=True))

    def place(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return fetched.to(self.device, non_blocking=True).float()

    def _load(self) -> Tensor:
        data = torch.empty((len(self.clip_ids) * self.views, *self.shape), dtype=self.dtype, device=self.device)
        for rows in torch.split(torch.arange(len(self.clip_ids)), CHUNK):
            for view in range(self.views):
                data[rows.to(self.device) * self.views + view] = self._read(rows, torch.full_like(rows, view)).to(data)
        return data

    def _read(self, rows: Tensor, views: Tensor) -> Tensor:
        """From the shards, one read for each view that occurs."""
        pinned = self.device.type == "cuda"
        out = torch.empty((len(rows), *self.shape), dtype=self.dtype, pin_memory=pinned)
        for view in np.unique(views.numpy()).tolist():
            places = (views == view).nonzero()[:, 0]
            clips = [self.clip_ids[row] for row in rows[places].tolist()]
            if self.reduce is None and len(places) == len(rows):
                self.cache.read(self.name, clips, view, out=out.numpy())
                continue
            read = torch.from_numpy(self.cache.read(self.name, clips, view))
            for place, array in zip(places.tolist(), read, strict=True):  # one by one: pieces stay in the CPU's cache
                out[place] = array if self.reduce is None else self.reduce(array.float())
        return out


class JoinedStream:
    """Several streams of the same clips as one: their vectors ``[N, d_i]`` side by side, ``[N, Σ d_i]``."""

    def __init__(self, parts: Sequence[CachedStream]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.shape[:-1] != first.shape[:-1] or part.views != first.views:
                raise OptionError(
                    f"stream={first.name},{part.name}: {first.views} views of {list(first.shape)} and {part.views} of "
                    f"{list(part.shape)} cannot be joined; extract both with the same levels and number of views."
                )
        self.shape = (*first.shape[:-1], sum(part.shape[-1] for part in self.parts))
        self.views = first.views

    @property
    def nbytes(self) -> int:
        """Size of the whole."""
        return sum(part.nbytes for part in self.parts)

    @property
    def held(self) -> bool:
        """Whether all of it lies in the device's memory."""
        return all(part.held for part in self.parts)

    @property
    def room(self) -> int:
        """Bytes of the budget that it leaves."""
        return sum(part.room for part in self.parts)

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> JoinedStream:
        """Each part with its maps passed through a fixed function."""
        return JoinedStream([part.reduced(reduce) for part in self.parts])

    def fetch(self, rows: Tensor, views: Tensor) -> Tensor:
        """As of one stream; stored types are widened to the widest."""
        fetched = [part.fetch(rows, views) for part in self.parts]
        dtype = functools.reduce(torch.promote_types, (f.dtype for f in fetched))
        return torch.cat([f.to(dtype) for f in fetched], dim=-1)

    def place(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return self.parts[0].place(fetched)


def cached_stream(
    cache: Reader, names: Sequence[str], clip_ids: Sequence[str], device: torch.device, budget: float
) -> CachedStream | JoinedStream:
    """One stream, or several as one; each may take an equal part of the budget."""
    parts = [CachedStream(cache, name, clip_ids, device, budget / len(names)) for name in names]
    return parts[0] if len(parts) == 1 else JoinedStream(parts)


def in_order(items: Items, batch_size: int, view: int = 0) -> Plan:
    """All items once, in order, in one view."""
    return [(index, torch.full_like(index, view)) for index in torch.split(torch.arange(len(items)), batch_size)]


def shuffled(items: Items, batch_size: int, views: int, rng: np.random.Generator) -> Plan:
    """One pass in random order, each item in a random view.

    Where there are ``items.extra``, half of every batch is drawn from them (each once before any comes again), and the
    pass ends when all the others have been seen. The plan depends on ``rng`` alone, so it can be drawn again.
    """
    main = len(items) - items.extra
    order = torch.from_numpy(rng.permutation(main))
    if items.extra:
        own = max(1, batch_size // 2)
        needed = -(-main // own) * max(1, batch_size - own)
        rounds = [rng.permutation(items.extra) for _ in range(-(-needed // items.extra))]
        others = torch.from_numpy(main + np.concatenate(rounds)[:needed])
        pairs = zip(torch.split(order, own), torch.split(others, max(1, batch_size - own)), strict=True)
        batches = [torch.cat([a, b[: max(1, len(b) * len(a) // own)]]) for a, b in pairs]
    else:
        batches = list(torch.split(order, batch_size))
    return [(index, torch.from_numpy(rng.integers(0, views, len(index)))) for index in batches]


def feed(items: Items, plan: Plan, device: torch.device) -> Iterator[Batch]:
    """The batches of a plan; those that come from shards are read by a thread while the caller computes."""
    fields = {name: values.to(device) for name, values in items.fields.items()}
    held = all(stream.held for stream, _ in items.inputs.values())
    fetched = _fetch_all(items, plan) if held else prefetch(_fetch_all(items, plan), PREFETCH)
    try:
        for (index, views), arrays in zip(plan, fetched, strict=True):
            batch = {name: items.inputs[name][0].place(array) for name, array in arrays.items()}
            index = index.to(device, non_blocking=True)
            batch |= {name: values[index] for name, values in fields.items()}
            batch["view"] = views.to(device, non_blocking=True)
            yield batch
    finally:
        fetched.close()


def _fetch_all(items: Items, plan: Plan) -> Generator[dict[str, Tensor]]:
    for index, views in plan:
        yield {name: stream.fetch(rows[index], views) for name, (stream, rows) in items.inputs.items()}
