"""Inputs made when they are asked for, as the training loop takes them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.stream import check_available
from kdcache.methods.contract import InputStream


class OnDemand(ABC):
    """A ``InputStream`` whose arrays are computed for each batch, while the device computes.

    View 0 is the clip as extraction sees it, on which networks are judged; every other view is an augmentation that
    depends on the seed, the example's key and the view's number alone, so that an epoch can be repeated.
    """

    resident = False
    workers = 1
    """Threads that make the arrays of a batch, each the same whichever makes it; decoders and OpenCV compute outside of
    Python's lock."""

    def __init__(
        self,
        shape: tuple[int, ...],
        views: int,
        seed: int,
        device: torch.device,
        available: Tensor | None = None,
    ) -> None:
        self.shape, self.views, self.seed, self.device = shape, views, seed, device
        self.available = available

    @abstractmethod
    def view(self, row: int, view: int, key: int) -> NDArray[Any]:
        """One view of one clip, an array of ``shape``; ``key`` names the example, for ``random``."""

    def random(self, key: int, view: int) -> np.random.Generator:
        """The random numbers of one view of one example."""
        return np.random.default_rng([self.seed, key, view])

    def fits(self, nbytes: int) -> bool:
        """Never: what is computed of augmented views depends on the example, so nothing is worth keeping."""
        return False

    def map(self, fn: Callable[[Tensor], Tensor]) -> InputStream:
        """The same stream with every array passed through a fixed function, each time it is made."""
        return MappedStream(self, fn)

    def fetch(self, rows: Tensor, views: Tensor, keys: Tensor) -> Tensor:
        """``[b, *shape]``, uint8 or float32."""
        check_available(type(self).__name__, self.available, rows)
        each = rows.tolist(), views.tolist(), keys.tolist()
        arrays = list(self._threads.map(self.view, *each) if self.workers > 1 else map(self.view, *each))
        if self.device.type != "cuda":
            return torch.from_numpy(np.stack(arrays))
        dtype = torch.from_numpy(arrays[0][:0]).dtype
        out = torch.empty((len(arrays), *arrays[0].shape), dtype=dtype, pin_memory=True)
        np.stack(arrays, out=out.numpy())
        return out

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """They end with the stream; what one of them raises is raised for the batch, whose other arrays are dropped."""
        return ThreadPoolExecutor(self.workers, "kdcache-decode")

    def to_device(self, fetched: Tensor) -> Tensor:
        """On the device, as fetched: the backbone's ``prepare`` takes it from there."""
        return fetched.to(self.device, non_blocking=True)


class MappedStream:
    """An ``OnDemand`` stream whose arrays pass through a fixed function, float32 in and out."""

    def __init__(self, stream: InputStream, fn: Callable[[Tensor], Tensor]) -> None:
        self.stream, self.fn = stream, fn
        self.shape = tuple(fn(torch.zeros(stream.shape)).shape)
        self.views, self.available, self.resident = stream.views, stream.available, False

    def fits(self, nbytes: int) -> bool:
        """As of the stream."""
        return self.stream.fits(nbytes)

    def map(self, fn: Callable[[Tensor], Tensor]) -> InputStream:
        """Both functions, one after the other."""
        return MappedStream(self, fn)

    def fetch(self, rows: Tensor, views: Tensor, keys: Tensor) -> Tensor:
        """``[b, *shape]`` float32."""
        return torch.stack([self.fn(array.float()) for array in self.stream.fetch(rows, views, keys)])

    def to_device(self, fetched: Tensor) -> Tensor:
        """On the device, float32."""
        return self.stream.to_device(fetched).float()
