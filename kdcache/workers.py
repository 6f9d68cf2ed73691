"""Units of work in this process or in several: starting and stopping them, signals, who died and why. Imports no torch.

A client says what a worker does with a unit (``Work``), what an event of it means (``on_event``) and what to do when
a worker dies (``on_death``); an ``Executor`` runs the units:

    >>> executor = Processes(work, 4, on_death)            # or Serial(work)
    >>> stop = StopFlag()
    >>> with stop_on_signals(stop):
    ...     executor.run(units, on_event, stop)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from kdcache.device_errors import lack_of_memory
from kdcache.errors import KdcacheError
from kdcache.log import logger, show_log

UnitT = TypeVar("UnitT")
EventT = TypeVar("EventT")
UnitT_contra = TypeVar("UnitT_contra", contravariant=True)
EventT_co = TypeVar("EventT_co", covariant=True)


class StopFlag:
    """Asks every worker, in whatever process, to stop at the next good place.

    One byte of shared memory: ``multiprocessing.Event`` has a lock, and a worker that is killed while it holds the
    lock would block all others for ever. It reaches another process only as an argument when that is started.
    """

    def __init__(self) -> None:
        self._byte = RawValue(ctypes.c_byte, 0)

    def set(self) -> None:
        """Ask."""
        self._byte.value = 1

    def is_set(self) -> bool:
        """Whether to stop."""
        return bool(self._byte.value)


class Work(Protocol[UnitT_contra, EventT_co]):
    """What workers do. It is pickled where they are processes."""

    def start(self, worker: int) -> Callable[[UnitT_contra, Callable[[EventT_co], None], StopFlag], None]:
        """Set up worker number ``worker`` (from 0), and return its function ``run_unit(unit, emit, stop)``."""
        ...


class Executor(Protocol[UnitT_contra, EventT_co]):
    """Runs units of work somewhere."""

    def run(self, units: Sequence[UnitT_contra], on_event: Callable[[EventT_co], None], stop: StopFlag) -> None:
        """Run all units, or those begun before ``stop`` was set.

        ``on_event`` is called in this thread with each event. What it raises, and a ``KdcacheError`` of a worker, ends
        the run and all workers.
        """
        ...


class Serial(Generic[UnitT, EventT]):
    """One unit after the other, in this process."""

    def __init__(self, work: Work[UnitT, EventT]) -> None:
        self._work = work

    def run(self, units: Sequence[UnitT], on_event: Callable[[EventT], None], stop: StopFlag) -> None:
        """See ``Executor``."""
        run_unit = None
        for unit in units:
            if stop.is_set():
                return
            run_unit = run_unit or self._work.start(0)
            run_unit(unit, on_event, stop)


class Processes(Generic[UnitT, EventT]):
    """Units in several spawned processes, which take the next one when they are ready.

    Args:
        work: what they do; it is unpickled in each process.
        workers: how many processes, at most one a unit.
        on_death: called when a process has died, with its unit (None: it died before it took one), the events of this
            unit until then, and how it died; returns units to run in its place, or raises what ends the run.
        interruptible: whether SIGTERM ends a unit in good order, by an exception. Such workers get it when the run
            ends early, and have their own process group: Ctrl-C reaches this process alone. Others ignore both
            signals: the flag stops them, or they are killed.
    """

    def __init__(
        self,
        work: Work[UnitT, EventT],
        workers: int,
        on_death: Callable[[UnitT | None, Sequence[EventT], str], Iterable[UnitT]],
        *,
        interruptible: bool = False,
    ) -> None:
        self._work, self._workers, self._on_death, self._interruptible = work, workers, on_death, interruptible

    def run(self, units: Sequence[UnitT], on_event: Callable[[EventT], None], stop: StopFlag) -> None:
        """See ``Executor``."""
        queue = deque(units)
        arguments = (pickle.dumps(self._work), self._interruptible, stop)
        workers: list[_Worker[UnitT, EventT]] = []
        with exit_on_sigterm() if self._interruptible else contextlib.nullcontext():
            try:
                for number in range(min(self._workers, len(units))):
                    workers.append(_Worker(number, *arguments))
                while workers:
                    pipes = wait([worker.pipe for worker in workers])
                    for worker in [w for w in workers if w.pipe in pipes]:
                        kind, content = worker.receive()
                        if kind == _EVENT:
                            on_event(content)
                        elif kind == _ERROR:
                            raise content
                        elif kind == _READY and queue and not stop.is_set():
                            worker.give(queue.popleft())
                        else:
                            workers.remove(worker)
                            worker.end()
                            if kind == _DEATH and not stop.is_set():  # Ctrl-C may end one that is still starting
                                queue.extendleft(self._on_death(worker.unit, worker.events, worker.how_it_died))
                                if queue:
                                    workers.append(_Worker(worker.number, *arguments))
            finally:
                for worker in workers:
                    (worker.process.terminate if self._interruptible else worker.process.kill)()
                for worker in workers:
                    worker.end()


_READY, _EVENT, _ERROR, _DEATH = "ready", "event", "error", "death"


class _Worker(Generic[UnitT, EventT]):
    """This process's end of a worker process."""

    def __init__(self, number: int, work: bytes, interruptible: bool, stop: StopFlag) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.unit: UnitT | None = None
        self.events: list[EventT] = []
        self.pipe, child = context.Pipe()
        arguments = (child, number, work, interruptible, stop, logger.getEffectiveLevel())
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        with without_main():
            self.process.start()
        child.close()

    def give(self, unit: UnitT) -> None:
        """Hand over a unit."""
        self.unit, self.events = unit, []
        with contextlib.suppress(ConnectionError):  # it has just died: its pipe ends, and all of the unit is left
            self.pipe.send(unit)

    def receive(self) -> tuple[str, Any]:
        """The next message."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):  # it may die in the middle of a message
            return _DEATH, None
        if kind == _READY:
            self.unit, self.events = None, []
        elif kind == _EVENT:
            self.events.append(content)
        return kind, content

    def end(self) -> None:
        """Let it finish what it is saving, and wait for its end."""
        self.pipe.close()
        self.process.join()

    @property
    def how_it_died(self) -> str:
        """Of a process that has ended."""
        code = self.process.exitcode or 0
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _serve(pipe: Connection, number: int, work: bytes, interruptible: bool, stop: StopFlag, log_level: int) -> None:
    """A worker process: take units from the pipe until it closes, send events back. It logs what its parent logs."""
    show_log(log_level)
    if not interruptible:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif hasattr(os, "setpgrp"):
        os.setpgrp()

    def send(kind: str, content: object = None) -> None:
        try:
            pipe.send((kind, content))
        except ConnectionError:  # the parent is dead
            raise SystemExit(1) from None

    try:
        # After the signals: unpickling imports the client's module, perhaps torch, which takes seconds.
        run_unit = pickle.loads(work).start(number)
        while True:
            send(_READY)
            try:
                unit = pipe.recv()
            except (EOFError, ConnectionError):  # the parent has closed the pipe, or is dead
                return
            run_unit(unit, functools.partial(send, _EVENT), stop)
    except KdcacheError as error:
        send(_ERROR, error)
    except Exception as error:
        if (known := lack_of_memory(error)) is None:
            raise
        send(_ERROR, known)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Keep a process that is spawned inside from running the user's script again: it needs nothing of it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


# ---------------------------------------------------------------------------
# signals
# ---------------------------------------------------------------------------


Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def kept_handlers(*numbers: int) -> Iterator[bool]:
    """Afterwards signals are handled as before, if this is the main thread: no other may; whether it is."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: _handler(number) for number in numbers}
    try:
        yield True
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def _handled(handler: Handler, *numbers: int) -> Iterator[None]:
    """Handle signals inside, if this is the main thread."""
    with kept_handlers(*numbers) as may:
        for number in numbers if may else ():
            signal.signal(number, handler)
        yield


def _handler(number: int) -> Any:
    """What happens at a signal now; the default where that was not set from Python."""
    found = signal.getsignal(number)
    return signal.SIG_DFL if found is None else found


@contextlib.contextmanager
def stop_on_signals(stop: StopFlag) -> Iterator[None]:
    """SIGTERM and Ctrl-C set the flag inside, and the second one ends at once; in other threads nothing changes."""

    def ask(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with _handled(ask, signal.SIGTERM, signal.SIGINT):
        yield


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends this process as an exception does, so that it can end its workers."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled(leave, signal.SIGTERM):
        yield


class Interrupts:
    """Notes SIGINT and SIGTERM, so that a loop can stop at a good place; a second one stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals over inside; only the main thread may."""
        before = {number: _handler(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: FrameType | None) -> None:
            self.received = number
            for each, handler in before.items():
                signal.signal(each, handler)

        with _handled(note, *before):
            yield

    def leave(self) -> None:
        """End the process, or the notebook cell, as the signal asked."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + int(self.received or signal.SIGTERM))
