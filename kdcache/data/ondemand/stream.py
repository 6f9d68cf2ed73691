"""Inputs made when they are asked for, as the training loop takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.methods.contract import Stream
from kdcache.methods.fit_options import Options


class OnDemand(ABC):
    """A ``Stream`` whose arrays are computed for each batch, ahead of the loop.

    View 0 is the clip as extraction sees it, on which networks are judged; every other view is an augmentation that
    depends on the seed, the clip's row and the view's number alone, so that an epoch can be repeated.
    """

    held = False
    room = 0

    def __init__(self, shape: tuple[int, ...], options: Options, seed: int, device: torch.device) -> None:
        self.shape, self.options, self.seed, self.device = shape, options, seed, device
        self.views = 1 + options.augmentations

    @abstractmethod
    def view(self, row: int, view: int) -> NDArray[Any]:
        """One view of one clip, an array of ``shape``."""

    def random(self, row: int, view: int) -> np.random.Generator:
        """The random numbers of one view of one clip."""
        return np.random.default_rng([self.seed, row, view])

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> Stream:
        """Never asked for: a backbone sees its input whole."""
        raise NotImplementedError

    def fetch(self, rows: Tensor, views: Tensor) -> Tensor:
        """``[b, *shape]``, uint8 or float32."""
        arrays = [self.view(row, view) for row, view in zip(rows.tolist(), views.tolist(), strict=True)]
        return torch.from_numpy(np.stack(arrays))

    def place(self, fetched: Tensor) -> Tensor:
        """On the device, as fetched: the backbone's ``prepare`` takes it from there."""
        return fetched.to(self.device, non_blocking=True)
