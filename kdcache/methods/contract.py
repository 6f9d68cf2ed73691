"""What a method and the trainer agree on: plain data classes over tensors, nothing to inherit from.

A method is a module with four names:

- ``Options``: a frozen, keyword-only data class; every field has the paper's value as its default and a docstring.
- ``resolve(options, data) -> Options``: the same with every ``auto`` decided.
- ``stages(options, data) -> Iterator[Stage]``: a generator. The trainer asks for the next stage, trains it (or loads
  it, when it is already trained), and asks again; so after each ``yield`` the module of that stage is trained, and the
  code of a method reads in the order of the paper. A stage seeds what it draws with ``reseed``.
- ``predictor(options, data) -> Predictor``: the untrained network that answers in the end.

- ``SAMPLES``: what an example is: ``"pairs"`` (``observed`` and ``action`` clips) or ``"clips"`` (one ``clip``).

Every module maps inputs ``[B, ...]`` to ``(scores, feature map)``; scores are ``[B, C]``, or ``[B, N, C]`` for N
degrees of progress.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdcache.metrics.topk import measure

Batch = dict[str, Tensor]
"""Tensors on the device by name: each input ``[B, ...]`` float32, each field ``[B]``, and ``view`` ``[B]``."""

Measure = Callable[[NDArray[np.floating], NDArray[np.int64]], Mapping[str, float]]
"""Class probabilities ``[n, ..., C]`` and true classes ``[n]`` → metrics in per cent; higher is better."""

HELD_OUT = ("validation", "test")
"""Splits that are never trained on; the first that a cache has selects the best epoch and judges a run."""

UNLABELLED = -1
"""Class index of a sample without a label."""


class Stream(Protocol):
    """One cached stream: clips are numbered rows, each with V views of one shape."""

    shape: tuple[int, ...]  # of one view, e.g. (480, 8, 14, 14)
    views: int

    @property
    def held(self) -> bool:
        """Whether it lies in the device's memory; else batches are read from the shards."""
        ...

    @property
    def room(self) -> int:
        """Bytes that a method may fill on the device beside it."""
        ...

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> Stream:
        """The same stream with each map ``[*shape]`` passed through a fixed function, once where it is held."""
        ...

    def fetch(self, rows: Tensor, views: Tensor) -> Tensor:
        """The given view of each row, as stored, wherever is cheapest; may be called from another thread."""
        ...

    def place(self, fetched: Tensor) -> Tensor:
        """What ``fetch`` returned, on the device, float32."""
        ...


@dataclass(frozen=True)
class Samples:
    """The examples of one split. ``rows`` and ``labels`` are int64 ``[n]`` on the CPU."""

    names: list[str]
    rows: dict[str, Tensor]
    """For each side ("observed", "action"; or "clip") its row in the stream; -1 where this split has no such clip."""
    labels: dict[str, Tensor]
    """For each target ("label", "verb", "noun") the class index, ``UNLABELLED`` where there is none."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Items:
    """What one pass reads: for each input the stream and its rows ``[n]``; fields ``[n]`` come along as they are."""

    inputs: dict[str, tuple[Stream, Tensor]]
    fields: dict[str, Tensor] = field(default_factory=dict)
    extra: int = 0
    """The last ``extra`` items are mixed half and half into every batch; a pass covers the others once."""

    def __len__(self) -> int:
        return next(len(rows) for _, rows in self.inputs.values())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training: ``module`` is moved by ``optimizer`` along the gradient of the sum of ``losses``."""

    name: str
    module: nn.Module
    train: Items
    losses: Callable[[Batch], dict[str, Tensor]]
    """Weighted terms of the objective for a batch, each a scalar; their sum is minimised."""
    epochs: int
    """At most; 0 for a module that is ready as it is."""
    batch_size: int
    tests: dict[str, Items]
    """For each held-out split the items whose input ``x`` is scored after every epoch, with the field ``y``."""
    optimizer: Optimizer | None = None
    """None only where there is nothing to train."""
    scheduler: LRScheduler | None = None
    """Stepped once an epoch; a ``ReduceLROnPlateau`` with the metric that selects the best epoch."""
    grad_clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    watch: Callable[[Batch], dict[str, Tensor]] | None = None
    """Further scalars to log, computed on the last batch of each epoch in evaluation mode without gradient."""
    measure: Measure = measure
    """Metrics of ``tests``."""
    select: str = "top1"
    """Which of them chooses the best epoch, on the first of ``tests``."""
    patience: int = 0
    """Epochs without a better one after which training stops early, and the best weights are handed on; 0 never does,
    and hands on the last."""
    identity: Mapping[str, Any] | None = None
    """All options that this stage's result depends on, as plain values, when other runs on the same data and seed may
    take it over instead of training it again; None: they may not."""


@dataclass(frozen=True)
class Predictor:
    """Which stage's weights answer, the network that they belong to, and what it sees."""

    stage: str
    module: nn.Module
    stream: Stream
    side: str
    """Of a sample: ``observed``, ``action`` or ``clip``."""
    measure: Measure = measure
    """Metrics of what it answers."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a method may know of a cache and a machine."""

    splits: dict[str, Samples]
    """"train" and at least one held-out split."""
    classes: dict[str, list[int]]
    """For each target the manifest's label of every class index, ascending."""
    stream: Stream
    layer: str
    """Name of the backbone's layer that the stream holds, as in its recipe; empty for other streams."""
    fitted: frozenset[str] = frozenset()
    """Clips whose labels the stream's backbone was fitted on; none for published and random weights."""
    seed: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]]
    """Context in which networks run: mixed precision, or nothing."""
    batches: Callable[[Items, int, int], Iterator[Batch]]
    """Items in order, in batches of the given size, each in the given view."""
    backbone: Callable[[], dict[str, Tensor]]
    """State dict of the backbone that made the stream; ``WeightsError`` when it cannot be found."""
    say: Callable[[str], None] = print
    """Tells the user what was chosen and why."""


def reseed(data: Data, what: str) -> None:
    """Start torch's random numbers afresh for one purpose, so that it does not depend on what was done before."""
    torch.manual_seed(zlib.crc32(f"{data.seed}/{what}".encode()))
