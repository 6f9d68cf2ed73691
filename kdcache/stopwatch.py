"""How long parts of a computation take, for whoever measures them; else a part costs two looks at the clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

FLOW, OPENING = "TV-L1", "opening a source"

_running: list[dict[str, float]] = []


@contextmanager
def part(name: str) -> Iterator[None]:
    """What is done inside (or in a function that it decorates) is the part ``name`` for every running stopwatch."""
    began = time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - began
        for seconds in _running:
            seconds[name] += took


@contextmanager
def stopwatch() -> Iterator[Mapping[str, float]]:
    """Seconds of each part that is done inside, by whichever thread of the process; 0 for one that is not."""
    seconds: dict[str, float] = defaultdict(float)
    _running.append(seconds)
    try:
        yield seconds
    finally:
        del _running[next(i for i, each in enumerate(_running) if each is seconds)]
