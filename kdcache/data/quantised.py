"""Quantised streams: their bytes are what lies in memory and goes to the device, and are decoded there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.data.stream import CachedStream, MemoryBudget, Reader
from kdcache.store import Cache
from kdcache.store.quantised import Packing


class QuantisedStream(CachedStream):
    """A quantised stream of a cache: a third to a half of the memory that its decoded arrays would take.

    Decoded it has the values that ``Cache.read`` gives, bit for bit. What ``map`` makes of it is kept as float16.
    """

    def __init__(self, cache: Cache, name: str, packing: Packing, *args: Any) -> None:
        super().__init__(cache, name, *args)
        self._shards, self.packing = cache, packing
        self.dtype, self.kept = torch.uint8, (packing.nbytes,)

    def to_device(self, fetched: Tensor) -> Tensor:
        """On the device, decoded, float32."""
        decoded = self._on_cpu(fetched) if self.device.type == "cpu" else self._on_device(fetched)
        return decoded if self.order is None else decoded.permute(0, *(1 + axis for axis in self.order))

    def _on_cpu(self, fetched: Tensor) -> Tensor:
        from kdcache.store.decoding import decode  # brings numba, which other streams do without

        out = torch.empty((len(fetched), *self.packing.shape))
        for packed, array in zip(fetched.numpy(), out.numpy(), strict=True):
            scale, offset, codes = self.packing.parts(packed)
            decode(codes, scale, offset, array)
        return out

    def _on_device(self, fetched: Tensor) -> Tensor:
        packing, count = self.packing, len(fetched)
        fetched = fetched.to(self.device, non_blocking=True)
        size = packing.scale_bytes
        scale, offset = (
            fetched[:, at : at + size].contiguous().view(torch.float32).reshape(count, *packing.scale_shape)
            for at in (0, size)
        )
        decoded = fetched[:, 2 * size :].reshape(count, *packing.shape).float().mul_(scale).add_(offset)
        return decoded.half().float()  # as Cache.read rounds: a run answers alike from cached and from new features

    def _read(self, rows: Tensor, views: Tensor) -> Tensor:
        """From the shards, one read for each view that occurs."""
        out = torch.empty((len(rows), *self.kept), dtype=self.dtype, pin_memory=self.device.type == "cuda")
        for view in np.unique(views.numpy()).tolist():
            places = (views == view).nonzero()[:, 0]
            clips = [self.clip_ids[row] for row in rows[places].tolist()]
            if len(places) == len(rows):
                self._shards.read_packed(self.name, clips, self.view_of[view], out=out.numpy())
            else:
                out[places] = torch.from_numpy(self._shards.read_packed(self.name, clips, self.view_of[view]))
        return out


def open_stream(
    cache: Reader,
    name: str,
    clip_ids: Sequence[str],
    device: torch.device,
    budget: MemoryBudget,
    available: Tensor | None,
    view_of: Sequence[int] | None,
    order: Sequence[int] | None,
    *,
    alone: bool,
) -> CachedStream:
    """A stream of features, as bytes where it is quantised and read ``alone``, not joined with others."""
    packing = cache.packing(name) if alone and isinstance(cache, Cache) else None
    if packing is None or not isinstance(cache, Cache):
        return CachedStream(cache, name, clip_ids, device, budget, available, view_of, order)
    return QuantisedStream(cache, name, packing, clip_ids, device, budget, available, view_of, order)
