"""One GPU of several, driven by a process of its own: it takes clips from a pipe and says what became of them."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

from kdcache.backbones.custom import in_workers, is_external, known_here
from kdcache.errors import DeviceError, KdcacheError
from kdcache.extraction.decoding import Prepared
from kdcache.extraction.device_loop import LOOK_S, DeviceLoop
from kdcache.extraction.slots import Slots, SlotsHandle
from kdcache.extraction.worker import Computed, Event, WorkerConfig
from kdcache.log import logger, show_log
from kdcache.runtime import limit_threads
from kdcache.store.failures import Failure
from kdcache.streams.backbone import BackboneStream
from kdcache.workers import StopFlag, without_main

LAST, END = "last", "end"


class DeviceProcess:
    """A ``DeviceLoop`` in another process.

    Args:
        config: of the run, with the device.
        slots: in which clips come; ``None``: with their messages.
        emit: is told of clips and shards, in a thread.
        stop: is set when the process has ended by an error, so that decoding ends.
    """

    def __init__(
        self, config: WorkerConfig, slots: Slots | None, emit: Callable[[Event], None], stop: StopFlag
    ) -> None:
        self._device, self._slots, self._emit, self._stop = config.device, slots, emit, stop
        self.backlog = 0
        """Clips of which nothing was heard yet."""
        self._error: BaseException | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        own = [s.backbone for s in config.streams if isinstance(s, BackboneStream) and is_external(s.backbone)]
        arguments = (child, config, None if slots is None else slots.handle, in_workers(own) if own else None)
        self._process = context.Process(target=_serve, args=(*arguments, logger.getEffectiveLevel()), daemon=True)
        with without_main():
            self._process.start()
        child.close()
        self._thread = threading.Thread(target=self._listen, name=f"kdcache-{config.device}", daemon=True)
        self._thread.start()

    def put(self, message: Prepared) -> None:
        """Take a clip; raises the error that has ended the process."""
        if message.slot is not None and self._slots is not None:
            self._slots.receive(message.slot)
        self.backlog += 1
        self._send(message)
        message.clip = None
        self.check()

    def last(self) -> None:
        """Say that no clip comes after those that came."""
        self._send(LAST)

    def finish(self) -> None:
        """Return when all clips are committed, after ``last``, or an error keeps them from it."""
        self._thread.join()

    def give_up(self) -> None:
        """End the process; what is computed is committed, what waits is not computed."""
        self._send(END)
        self._thread.join()
        self._process.join()
        self._pipe.close()

    def check(self) -> None:
        """Raise the error that has ended the process."""
        if self._error is not None:
            raise self._error

    def _send(self, message: Prepared | str) -> None:
        with suppress(OSError):  # it has ended: the thread knows why
            self._pipe.send(message)

    def _listen(self) -> None:
        try:
            while True:
                try:
                    message = self._pipe.recv()
                except (EOFError, OSError):
                    raise DeviceError(
                        f"{self._device}: the process that drives it has died; see what nvidia-smi and the log of the "
                        "system say, then run the same command again, which goes on from what is saved."
                    ) from None
                if message is None:
                    return
                if isinstance(message, BaseException):
                    raise message
                self.backlog -= isinstance(message, (Computed, Failure))
                self._emit(message)
        except BaseException as error:
            self._error = error
            self._stop.set()


def _serve(
    pipe: Connection, config: WorkerConfig, handle: SlotsHandle | None, networks: bytes | None, log_level: int
) -> None:
    """The process. What is sent back: events, then None at its end or an error."""
    show_log(log_level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if networks is not None:
        known_here(networks)
    limit_threads(config.threads)
    lock = threading.Lock()

    def send(message: Event | KdcacheError | None) -> None:
        with lock, suppress(ConnectionError):  # the parent is dead: this process ends when it next looks for clips
            pipe.send(message)

    slots = None if handle is None else handle.open()
    loop = DeviceLoop(config, slots, None, send, StopFlag())
    try:
        _take(pipe, loop)
        send(None)
    except KdcacheError as error:
        send(error)
    finally:
        loop.give_up()


def _take(pipe: Connection, loop: DeviceLoop) -> None:
    """Hand clips to the threads until the last one is committed, or nobody waits for it."""
    while True:
        while not pipe.poll(LOOK_S):
            loop.check()
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message == END:
            return
        if message == LAST:
            loop.last()
            loop.finish()
            loop.check()
            return
        loop.put(message)
