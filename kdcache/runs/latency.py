"""How long runs take to answer for a clip of a source, measured through what ``kdcache.predict`` calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from kdcache.errors import SourceError
from kdcache.runs.online.loading import load
from kdcache.runs.run import Run
from kdcache.runtime import resolve_device
from kdcache.skeletons import check_skeleton
from kdcache.sources import open_source
from kdcache.stopwatch import FLOW, OPENING, stopwatch

Latency = tuple[float, float]
"""Seconds of an answer, and those of them that TV-L1 takes."""


class Answering:
    """A run that is loaded and has answered once for a clip, so that nothing is built or compiled any more.

    Raises:
        OptionError, WeightsError, SourceError, ClipError: see ``kdcache.predict``.
    """

    def __init__(self, run: Run, source: Path, start: float | None, stop: float | None, fps: float | None) -> None:
        self._loaded = load(run)
        self.device = str(resolve_device(run.settings.device))
        self._source, self._span = source, (None, start, stop, fps)
        self.once()

    def once(self) -> Latency:
        """One more answer, of early recognition at all levels; opening the source, which is no part of it, is not
        counted."""
        with stopwatch() as seconds:
            began = time.perf_counter()
            for _ in self._loaded.answers(self._source, self._span):
                pass
            took = time.perf_counter() - began
        return took - seconds[OPENING], seconds[FLOW]


def side_by_side(runs: Sequence[Answering], repeats: int) -> list[Latency]:
    """The median of each run's repeats (the lower one of an even number); runs take turns: first, second, first …"""
    rounds = [[run.once() for run in runs] for _ in range(repeats)]
    return [sorted(each)[(repeats - 1) // 2] for each in zip(*rounds, strict=True)]


def check_readable(source: str | Path) -> None:
    """Refuse, before hours of training, what is neither a video nor a skeleton file.

    Raises:
        SourceError: what is wrong with it.
    """
    try:
        with open_source(source):
            return
    except SourceError as error:
        try:
            check_skeleton(source)
        except SourceError:
            raise error from None
