"""Extraction on several machines: that they see the same folders, and what is left of a unit when one goes."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdcache.errors import StoreError
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.extraction.worker import Done, Event, Recovered
from kdcache.files import temporary_name
from kdcache.store.commit import shard_files
from kdcache.store.failures import Failure
from kdcache.store.shard import open_shard
from kdcache.store.texts import manifest_rows, strings

SHARED_S = 10.0  # a file that another machine has made is seen after so long at the latest

OnDeath = Callable[[WorkUnit | None, Sequence[Event], str], list[WorkUnit]]


def left_of(unit: WorkUnit | None, events: Sequence[Event]) -> list[Task]:
    """Clips of a unit that are neither committed nor failed."""
    ended = {event.clip_id for event in events if isinstance(event, (Failure, Recovered))}
    ended |= {task.clip_id for event in events if isinstance(event, Done) for task in event.tasks}
    return [task for task in unit.tasks if task.clip_id not in ended] if unit else []


class Nodes:
    """What a run on a cluster keeps of its shards: the last words of a worker that dies may not arrive.

    Args:
        out: the cache.
        on_event: takes all events, and ``Recovered`` of clips that such a worker had committed.
    """

    def __init__(self, out: Path, on_event: Callable[[Event], None]) -> None:
        self._out, self._on_event = out, on_event
        self._known = {path.name for path in shard_files(out)}

    def note(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Done):
            self._known.add(event.shard.name)
        self._on_event(event)

    def lost(self, unit: WorkUnit | None, events: Sequence[Event]) -> list[WorkUnit]:
        """What is left of a unit whose machine has gone."""
        left = left_of(unit, [*events, *self._recovered(unit)])
        return [WorkUnit(unit.streams, tuple(left))] if unit and left else []

    def heard(self, on_death: OnDeath) -> OnDeath:
        """The same function, which is told of what a dead worker had committed."""
        return lambda unit, events, how: on_death(unit, [*events, *self._recovered(unit)], how)

    def _recovered(self, unit: WorkUnit | None) -> list[Recovered]:
        """Clips of a unit in shards of which no word has come."""
        found: list[Recovered] = []
        tasks = {task.clip_id: task for task in unit.tasks} if unit else {}
        for path in shard_files(self._out):
            if path.name in self._known:
                continue
            shard, tables = open_shard(path)
            for row, clip in enumerate(manifest_rows(path, tables)):
                task = tasks.get(clip["clip_id"])
                keys = {stream: strings(path, tables, f"key/{stream}")[row] for stream in shard.streams}
                if task is not None and task.keys == keys:
                    digests = {stream: strings(path, tables, f"digest/{stream}")[row] for stream in keys}
                    found.append(Recovered(task, path.name, row, digests))
        for event in found:
            self._on_event(event)
        self._known |= {event.shard for event in found}
        return found


@contextlib.contextmanager
def shared_folder(out: Path) -> Iterator[Path]:
    """Inside, the cache's folder has a file by which other machines know that it is the same folder."""
    path = (out / temporary_name("shared")).absolute()
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def await_shared(path: Path) -> None:
    """Wait a little for what network file systems show late.

    Raises:
        StoreError: it is not there.
    """
    until = time.monotonic() + SHARED_S
    while not path.exists():
        if time.monotonic() > until:
            raise StoreError(
                f"{path.parent}: {socket.gethostname()} does not see what this folder has; --out and --root must be "
                "shared by all nodes of the cluster, under the same names."
            )
        time.sleep(0.2)
