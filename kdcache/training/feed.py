"""Cached arrays → batches on the device: held there whole when they fit, else read ahead from the shards."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kdcache.methods.contract import Batch, Items

AHEAD = 3  # batches that wait ready while the device computes
CHUNK = 64  # clips read at once when a stream is loaded whole

Plan = list[tuple[Tensor, Tensor]]
"""Of each batch: the items, int64 ``[b]``, and the view of each."""


class Reader(Protocol):
    """What is needed of ``kdcache.store.Cache``."""

    def shape(self, stream: str) -> tuple[int, ...]: ...
    def dtype(self, stream: str) -> np.dtype[Any]: ...
    def read(self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: Any = None) -> Any: ...


class Streamed:
    """A stream left in its shards; every batch is read from them."""

    held = False

    def __init__(self, cache: Reader, stream: str, clip_ids: Sequence[str], device: torch.device) -> None:
        self.cache, self.name, self.device = cache, stream, device
        self.clip_ids = np.asarray(clip_ids, dtype=object)
        self.views, *shape = cache.shape(stream)
        self.shape = tuple(shape)

    @property
    def nbytes(self) -> int:
        """Size of the whole stream, as stored."""
        return len(self.clip_ids) * self.views * int(np.prod(self.shape)) * self.cache.dtype(self.name).itemsize

    def fetch(self, rows: Tensor, views: Tensor) -> Tensor:
        """The given view of each row, as stored, in host memory (pinned for a GPU)."""
        clips, chosen = self.clip_ids[rows.numpy()], views.numpy()
        pinned = self.device.type == "cuda"
        out = torch.empty((len(clips), *self.shape), dtype=_torch_dtype(self.cache.dtype(self.name)), pin_memory=pinned)
        first = int(chosen[0])
        if (chosen == first).all():
            self.cache.read(self.name, list(clips), first, out=out.numpy())
            return out
        for view in np.unique(chosen):
            places = np.flatnonzero(chosen == view)
            read = self.cache.read(self.name, list(clips[places]), int(view))
            out[torch.from_numpy(places)] = torch.from_numpy(read)
        return out

    def place(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return fetched.to(self.device, non_blocking=True).float()


class Held:
    """A stream whose every clip and view lies in the device's memory, as stored."""

    held = True

    def __init__(self, source: Streamed) -> None:
        self.views, self.shape, self.device = source.views, source.shape, source.device
        clips, dtype = list(source.clip_ids), _torch_dtype(source.cache.dtype(source.name))
        self.data = torch.empty((len(clips), self.views, *self.shape), dtype=dtype, device=self.device)
        for start in range(0, len(clips), CHUNK):
            read = source.cache.read(source.name, clips[start : start + CHUNK])
            self.data[start : start + CHUNK] = torch.from_numpy(read).to(self.device)
        self.data = self.data.flatten(0, 1)

    def fetch(self, rows: Tensor, views: Tensor) -> Tensor:
        """The given view of each row, on the device."""
        return self.data.index_select(0, (rows * self.views + views).to(self.device, non_blocking=True))

    def place(self, fetched: Tensor) -> Tensor:
        """As float32."""
        return fetched.float()


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


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
    fetched = _fetch_all(items, plan) if held else _ahead(_fetch_all(items, plan))
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


def _ahead(source: Iterator[dict[str, Tensor]]) -> Generator[dict[str, Tensor]]:
    """The same values, produced by a thread that stays ``AHEAD`` of the consumer; its errors are raised here."""
    ready: queue.Queue[Any] = queue.Queue(AHEAD)
    stopped = threading.Event()
    end = object()

    def offer(value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for value in source:
                if not offer((value, None)):
                    return
            offer((end, None))
        except BaseException as error:  # handed to the consumer, which raises it
            offer((end, error))

    thread = threading.Thread(target=produce, name="kdcache-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is end:
                return
            yield value
    finally:
        stopped.set()
        thread.join()
