"""Launches that come again and again on the same memory: a CUDA graph starts them all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kdcache.log import logger

Launch = Callable[[], None]


class Graphs:
    """Captures launches, until that has failed once: then they are made one by one, which changes no result."""

    def __init__(self, capture: Callable[[Launch], Launch] | None) -> None:
        """``capture`` gives what replays some launches; ``None``: nothing does."""
        self._capture = capture

    def of(self, launch: Launch) -> Launch | None:
        """What replays the launches, if anything does."""
        if self._capture is None:
            return None
        try:
            return self._capture(launch)
        except RuntimeError as error:  # what is wrong with more than graphs will be so at the next launch, too
            self._capture = None
            reason = str(error).partition("\n")[0]
            logger.warning("TV-L1: no CUDA graph could be made (%s): it goes on without, more slowly.", reason)
            return None


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


def cuda_graph(launch: Launch) -> Launch:
    """The launches as a CUDA graph, which is not started yet. Other threads may use the GPU meanwhile."""
    stream: Any = torch.cuda.Stream  # untyped
    graph, aside = torch.cuda.CUDAGraph(), stream()
    with torch.cuda.stream(aside):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    return graph.replay
