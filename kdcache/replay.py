"""Launches that come again and again on the same memory: a CUDA graph starts them all at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.device_errors import is_out_of_memory
from kdcache.log import logger

SHAPES = 4  # of a network's batches that are captured: each holds memory for all that lies between its layers

Launch = Callable[[], None]


class Graphs:
    """Captures launches, until that has failed once: then they are made one by one, which changes no result."""

    def __init__(self, capture: Callable[[Launch], Launch] | None, whose: str) -> None:
        """``capture`` gives what replays some launches; ``None``: nothing does. ``whose`` they are, for a warning."""
        self._capture, self._whose = capture, whose

    @property
    def possible(self) -> bool:
        """Whether anything may be replayed."""
        return self._capture is not None

    def of(self, launch: Launch) -> Launch | None:
        """What replays the launches, if anything does."""
        if self._capture is None:
            return None
        try:
            return self._capture(launch)
        except RuntimeError as error:  # what is wrong with more than graphs will be so at the next launch, too
            self.give_up(str(error).partition("\n")[0])
            return None

    def give_up(self, reason: str) -> None:
        """Capture nothing from now on."""
        self._capture = None
        logger.warning("%s: no CUDA graph could be made (%s): it goes on without, more slowly.", self._whose, reason)


class Replayed:
    """Launches made one by one the first time, which compiles kernels; captured the second; replayed from then on.

    They must be the same each time, on memory that stays where it is, and must not wait for the device.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._seen = False
        self._replay: Launch | None = None

    def __call__(self, launch: Launch) -> None:
        """Make the launches, which ``launch`` makes."""
        if self._seen and self._replay is None:
            self._replay = self._graphs.of(launch)
        (self._replay or launch)()
        self._seen = True


class ReplayedNetwork:
    """A network whose batches have few shapes: the second batch of a shape is captured, later ones are replayed.

    What a graph gives is held against what the network itself gives for the same batch, to the bit, before it is used.

    Args:
        compute: batch → results, contiguous float tensors on the device. One that waits for the device cannot be
            captured.
        graphs: how launches are captured.
    """

    def __init__(self, compute: Callable[[Tensor], list[Tensor]], graphs: Graphs) -> None:
        self._compute, self._graphs = compute, graphs
        self._seen: dict[tuple[torch.Size, torch.dtype], _Captured | None] = {}

    def __call__(self, x: Tensor) -> list[Tensor]:
        """The results for a batch, in memory of their own."""
        try:
            return self._answer(x)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._seen.clear()  # a smaller batch will want what the graphs hold
            raise

    def _answer(self, x: Tensor) -> list[Tensor]:
        shape = x.shape, x.dtype
        if (captured := self._seen.get(shape)) is not None:
            return captured(x)
        result = self._compute(x)
        if not self._graphs.possible:
            return result
        if shape in self._seen:
            captured = self._capture(x, result)
            if captured is None:
                self._seen.clear()
            else:
                self._seen[shape] = captured
        elif len(self._seen) < SHAPES:
            self._seen[shape] = None
        return result

    def _capture(self, x: Tensor, expected: list[Tensor]) -> _Captured | None:
        given, found = x.clone(), [torch.empty_like(each) for each in expected]
        replay = self._graphs.of(lambda: _into(found, self._compute(given)))
        if replay is None:
            return None
        captured = _Captured(given, found, replay)
        for each in found:  # a launch that was made, not captured, has filled it
            each.fill_(math.nan)
        if not all(map(_same, captured(x), expected)):
            self._graphs.give_up("its results are others")
            return None
        return captured


@dataclass(frozen=True)
class _Captured:
    """A graph, and the memory that it reads and writes."""

    given: Tensor
    found: list[Tensor]
    replay: Launch

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.given.copy_(x)
        self.replay()
        return [each.clone() for each in self.found]


def _into(memory: list[Tensor], results: list[Tensor]) -> None:
    for own, result in zip(memory, results, strict=True):
        own.copy_(result)


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit, NaN as well."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def cuda_graphs(device: torch.device) -> Callable[[Launch], Launch]:
    """Captures launches on a device as a CUDA graph, which is not started yet. Other threads may use it meanwhile."""

    def capture(launch: Launch) -> Launch:
        stream: Any = torch.cuda.Stream  # untyped
        with torch.cuda.device(device):
            graph, aside, memory = torch.cuda.CUDAGraph(), stream(device), torch.cuda.graph_pool_handle()
            with torch.cuda.stream(aside):
                graph.capture_begin(memory, capture_error_mode="thread_local")
                try:
                    launch()
                finally:
                    _end(graph, memory)
        return graph.replay

    return capture


def _end(graph: torch.cuda.CUDAGraph, memory: tuple[int, int]) -> None:
    """End a capture. Of one that has failed torch's allocator is told, too, which torch itself leaves out: it would
    never again free what it keeps, so that memory runs out early, and end the run where it is asked to."""
    try:
        graph.capture_end()
    except RuntimeError:
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # it had been told, and the graph itself gives the memory back
            torch._C._cuda_endAllocateToPool(device, memory)
            torch._C._cuda_releasePool(device, memory)
        raise
