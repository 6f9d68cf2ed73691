"""A unit's sources where they can be read: local ones as they are, others fetched one ahead of the decoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from kdcache.errors import RemoteError
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.prefetch import prefetch
from kdcache.remote import Address, FetchStopped, Remote, is_address
from kdcache.sources import SourceCache
from kdcache.workers import StopFlag


class Readable(NamedTuple):
    """One source with its tasks."""

    tasks: list[Task]
    path: str
    """Where it can be read while ``hold`` is open."""
    error: RemoteError | None
    """Why it could not be fetched."""
    hold: ExitStack


def readable(unit: WorkUnit, cache: SourceCache | None, stop: StopFlag) -> Iterator[Readable]:
    """The sources of a unit in its order, until ``stop`` is set.

    Raises:
        RemoteError: a host or bucket does not answer, so that no other source could be had either.
        StoreError: the disk of the cache is full.
    """
    groups = _groups(unit, cache, stop)
    return groups if cache is None else prefetch(groups, 1)


def _groups(unit: WorkUnit, cache: SourceCache | None, stop: StopFlag) -> Iterator[Readable]:
    for path, group in itertools.groupby(unit.tasks, key=lambda task: task.path):
        if stop.is_set():
            return
        tasks, hold = list(group), ExitStack()
        if cache is None or not is_address(path):
            yield Readable(tasks, path, None, hold)
            continue
        address, failed = Address(path), None
        try:
            path = str(hold.enter_context(cache.held(address, tasks[0].fingerprint, stop.is_set)))
        except FetchStopped:
            return
        except RemoteError as error:
            failed = error
            if error.again:
                Remote(address).answers(address)
        yield Readable(tasks, path, failed, hold)
