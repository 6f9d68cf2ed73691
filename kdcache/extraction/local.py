"""The local engine: units run in this process, or in spawned worker processes that are replaced when they die."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from kdcache.errors import KdcacheError
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.extraction.worker import Done, Event, Flag, Started, WorkerConfig, run_unit
from kdcache.runtime import without_main
from kdcache.store.failures import Failure

Listener = Callable[[Event], None]


def run_here(units: Sequence[WorkUnit], place: WorkerConfig, listen: Listener, stop: Flag) -> None:
    """Run all units one after the other in this process."""
    if not units:
        return
    nets = _set_up(place)
    for unit in units:
        if stop.is_set():
            return
        run_unit(unit, place, nets, listen, stop)


def _set_up(place: WorkerConfig) -> Any:
    import torch

    from kdcache.extraction.features import Backbones

    torch.set_num_threads(place.threads)
    return Backbones(place.streams, place.weights, place.device, place.batch)


def _worker(pipe: Connection, place: WorkerConfig, stop: Any) -> None:
    """A worker process: take units from the pipe until it closes, send events back; a ``None`` event asks for more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop, and tells through the flag
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        nets = _set_up(place)
        pipe.send(None)
        while True:
            run_unit(pipe.recv(), place, nets, pipe.send, stop)
            pipe.send(None)
    except (EOFError, ConnectionError):  # the parent has closed the pipe, or is dead
        return
    except KdcacheError as error:
        pipe.send(error)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, place: WorkerConfig, stop: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_worker, args=(child, place, stop), daemon=True)
        with without_main():
            self.process.start()
        child.close()
        self.left: dict[str, Task] = {}  # clips of the unit at hand that are neither committed nor failed
        self.streams: tuple[str, ...] = ()
        self.source = ""

    def give(self, unit: WorkUnit) -> None:
        """Hand over a unit."""
        self.left = {task.clip_id: task for task in unit.tasks}
        self.streams = unit.streams
        with contextlib.suppress(ConnectionError):  # it has just died: its pipe ends, and all of the unit is left
            self.pipe.send(unit)

    @property
    def suspect(self) -> str:
        """The source at which the worker is; empty when it holds no clips.

        Frames are decoded ahead: a crash on opening a source may come before word of it, hence the second guess.
        """
        paths = [task.path for task in self.left.values()]
        return self.source if self.source in paths else next(iter(paths), "")

    def note(self, event: Event) -> None:
        """Keep track of what would be lost if the worker died now."""
        if isinstance(event, Started):
            self.source = event.path
        elif isinstance(event, Failure):
            self.left.pop(event.clip_id, None)
        elif isinstance(event, Done):
            for task in event.tasks:
                self.left.pop(task.clip_id, None)


def run_processes(units: Sequence[WorkUnit], place: WorkerConfig, workers: int, listen: Listener, stop: Any) -> None:
    """Run units in ``workers`` processes.

    A worker that dies loses only its shard in flight: a new one takes up the clips that were not committed. A source
    at which workers die twice is listed as failed and left out.
    """
    queue = deque(units)
    deaths: dict[str, int] = {}
    crew = [_Worker(place, stop) for _ in range(min(workers, len(units)))]
    try:
        while crew:
            ready = wait([w.pipe for w in crew])
            for worker in [w for w in crew if w.pipe in ready]:
                try:
                    event = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    crew.remove(worker)
                    worker.process.join()
                    if not stop.is_set():  # Ctrl-C may end a worker that is still starting
                        queue.extendleft(_after_death(worker, deaths, listen))
                        if queue:
                            crew.append(_Worker(place, stop))
                    continue
                if isinstance(event, KdcacheError):
                    raise event
                if event is not None:
                    worker.note(event)
                    listen(event)
                elif queue and not stop.is_set():
                    worker.give(queue.popleft())
                else:
                    worker.pipe.close()
                    worker.process.join()
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.process.kill()
            worker.process.join()


def _after_death(worker: _Worker, deaths: dict[str, int], listen: Listener) -> list[WorkUnit]:
    """What is left of a dead worker's unit; clips of the source that killed two workers become failures."""
    source, tasks = worker.suspect, list(worker.left.values())
    deaths[source] = deaths.get(source, 0) + 1
    if not source and deaths[""] >= 2:
        raise KdcacheError("Workers die before reading anything; try --workers 1 or check the free memory.")
    if deaths[source] >= 2:
        code = worker.process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        for task in [t for t in tasks if t.path == source]:
            reason = f"Two workers died ({how}) while reading {source}; check the file and the free memory."
            listen(Failure(task.clip_id, str(task.row["source"]), "worker", reason, next(iter(task.keys.values()))))
            tasks.remove(task)
    # One unit a source from here on: if it happens again, the culprit loses nobody else's clips.
    return [WorkUnit(worker.streams, tuple(g)) for _, g in itertools.groupby(tasks, key=lambda t: t.path)]
