"""Working on several pairs at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kdcache.runtime import cores


def each_pair(count: int, threads: int | None, work: Callable[[int], None]) -> None:
    """Call ``work`` for each of ``count`` pairs in ``threads`` threads (default: one a core that may be used)."""
    workers = min(count, threads or cores())
    if workers <= 1:
        for pair in range(count):
            work(pair)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, range(count)):
            pass
