"""Extraction on several machines: what is left of a unit when one goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdcache.extraction.decoding import Message, Prepared
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.extraction.worker import Done, Event, Recovered
from kdcache.store.commit import shard_files
from kdcache.store.failures import Failure
from kdcache.store.shard import open_shard
from kdcache.store.texts import manifest_rows, strings

OnDeath = Callable[[WorkUnit | None, Sequence[Event], str], list[WorkUnit]]


def left_of(unit: WorkUnit | None, events: Sequence[Message]) -> list[Task]:
    """Clips of a unit that are neither committed, nor failed, nor handed over to another process."""
    ended = {event.clip_id for event in events if isinstance(event, (Failure, Recovered, Prepared))}
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
            keys, digests = (
                {stream: strings(path, tables, f"{table}/{stream}") for stream in shard.streams}
                for table in ("key", "digest")
            )
            for row, clip in enumerate(manifest_rows(path, tables)):
                task = tasks.get(clip["clip_id"])
                if task is not None and task.keys == {stream: its[row] for stream, its in keys.items()}:
                    of_clip = {stream: its[row] for stream, its in digests.items()}
                    found.append(Recovered(task, path.name, row, of_clip))
        for event in found:
            self._on_event(event)
        self._known |= {event.shard for event in found}
        return found
