"""A unit's sources where they can be read: local ones as they are, others fetched one ahead of the decoder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple, Self

from kdcache.errors import RemoteError, SourceError
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.prefetch import prefetch
from kdcache.remote import Address, FetchStopped, Remote, is_address
from kdcache.sources import SourceCache, fingerprint, signature
from kdcache.workers import StopFlag


class Readable(NamedTuple):
    """One source with its tasks."""

    tasks: list[Task]
    path: str
    """Where it can be read while ``hold`` is open."""
    error: RemoteError | None
    """Why it could not be fetched."""
    hold: ExitStack


class ChangedSource(SourceError):
    """A source that is another one than that which was planned with: its arrays belong under other keys."""


class SourceWatch(NamedTuple):
    """Whether a source is what it was when it was fingerprinted."""

    path: str
    look: tuple[int, int]
    """Its size and time of change."""

    @classmethod
    def of(cls, source: Readable) -> Self:
        """Of a source that is about to be read; other times of change, as of a machine's own copy, are no other source.

        Raises:
            ChangedSource: it was replaced or written to since the plan was made.
        """
        look, task = _look(source.path), source.tasks[0]
        here = task.path == source.path  # what is fetched is held against the fingerprint there
        if here and task.looks and look not in task.looks and fingerprint(source.path) != task.fingerprint:
            raise _changed(source.path)
        return cls(source.path, look)

    def check(self) -> None:
        """``ChangedSource`` where it has changed since; the many files of a folder are looked at once only."""
        if not os.path.isdir(self.path) and _look(self.path) != self.look:
            raise _changed(self.path)


def _look(path: str) -> tuple[int, int]:
    try:
        return signature(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); put it back, then --retry-failed.") from error


def _changed(path: str) -> ChangedSource:
    return ChangedSource(f"{path}: changed while the extraction ran; run the same command again, which reads it anew.")


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
