"""A worker on a node of the cluster: an actor that is set up once, runs unit after unit and streams their events.

Imported by Ray on the node; imports no torch before its work does.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from kdcache import __version__
from kdcache.errors import KdcacheError, OptionError
from kdcache.log import logger
from kdcache.workers import StopFlag

NODE, EVENT, LOG, ERROR, CRASH = "node", "event", "log", "error", "crash"
Message = tuple[str, Any]


class _Forwarding(logging.Handler):
    """Hands what is logged to whoever listens: the driver shows it."""

    def __init__(self, messages: queue.SimpleQueue[Message | None]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.put((LOG, (record.levelno, record.getMessage())))


class Serving:
    """One worker. ``stop`` is called beside ``run``: the actor has two threads."""

    def __init__(self, number: int, log_level: int) -> None:
        self._number = number
        self._stop = StopFlag()
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._run_unit: Any = None
        logger.handlers[:] = [_Forwarding(self._messages)]
        logger.setLevel(log_level)
        logger.propagate = False

    def start(self, version: str, folder: str, work: bytes) -> Iterator[Message]:
        """Go to the folder in which the command was called and set the work up there.

        Yields:
            Ray's id of the node and its name, then messages of the log or of an error.
        """

        def set_up() -> None:
            import ray

            host = socket.gethostname()
            self._messages.put((NODE, (ray.get_runtime_context().get_node_id(), host)))
            if version != __version__:
                raise OptionError(
                    f"{host} has kdcache {__version__}, this machine {version}: install the same on both."
                )
            try:
                os.chdir(folder)  # relative paths mean the same there
            except OSError as error:
                raise OptionError(
                    f"{host} cannot go to {folder} ({error.strerror}): work in a folder that all nodes share."
                ) from error
            self._run_unit = pickle.loads(work).start(self._number)

        yield from self._listen(set_up)

    def run(self, unit: bytes) -> Iterator[Message]:
        """Run one unit, message by message."""

        def go() -> None:
            self._run_unit(pickle.loads(unit), lambda event: self._messages.put((EVENT, event)), self._stop)

        yield from self._listen(go)

    def stop(self) -> None:
        """End the unit at the next good place."""
        self._stop.set()

    def _listen(self, function: Any) -> Iterator[Message]:
        """What comes while a function runs in a thread of its own."""

        def guarded() -> None:
            try:
                function()
            except KdcacheError as error:
                self._messages.put((ERROR, error))
            except BaseException:  # whatever it is, the driver says it and replaces this worker
                self._messages.put((CRASH, traceback.format_exc()))
            self._messages.put(None)

        threading.Thread(target=guarded, daemon=True).start()
        while (message := self._messages.get()) is not None:
            yield message
