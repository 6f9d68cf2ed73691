"""What follows when a worker of an extraction dies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from kdcache.errors import KdcacheError
from kdcache.extraction.decoding import Message
from kdcache.extraction.nodes import left_of
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.extraction.worker import Started
from kdcache.store.failures import Failure


def after_death(
    unit: WorkUnit | None,
    events: Sequence[Message],
    how: str,
    deaths: dict[str, int],
    on_event: Callable[[Failure], None],
) -> list[WorkUnit]:
    """What is left of a dead worker's unit; clips of the source that killed two workers become failures.

    Args:
        unit: the worker's; None when it died before it took one.
        events: those of the unit.
        how: the worker died.
        deaths: counted by source.
        on_event: takes the failures.

    Raises:
        KdcacheError: two workers died before they took a unit.
    """
    left = left_of(unit, events)
    source = _suspect(left, events)
    deaths[source] = deaths.get(source, 0) + 1
    if not source and deaths[""] >= 2:
        raise KdcacheError(f"Workers die before reading anything ({how}); try --workers 1 or check the free memory.")
    if deaths[source] >= 2:
        for task in [t for t in left if t.path == source]:
            reason = f"Two workers died ({how}) while reading {source}; check the file and the free memory."
            on_event(task.failed("worker", reason))
            left.remove(task)
    # One unit a source from here on: if it happens again, the culprit loses nobody else's clips.
    streams = unit.streams if unit else ()
    return [WorkUnit(streams, tuple(group)) for _, group in itertools.groupby(left, key=lambda t: t.path)]


def _suspect(left: Sequence[Task], events: Sequence[Message]) -> str:
    """The source at which the worker was; empty when it held no clips.

    Frames are decoded ahead: a crash on opening a source may come before word of it, hence the second guess.
    """
    paths = [task.path for task in left]
    started = [event.path for event in events if isinstance(event, Started) and event.path in paths]
    return started[-1] if started else next(iter(paths), "")
