"""The threads that drive one GPU: clips in slots → fill → compute → gather → shelf → shards.

Each is a step ahead of the next: while networks compute one batch, the clips of the next are copied, those of the last
put together, and full shards written.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.extraction.batches import Batches, GivenUp, Networks, Waiting
from kdcache.extraction.decoding import Prepared
from kdcache.extraction.features import Backbones
from kdcache.extraction.shelf import Shelf
from kdcache.extraction.slots import Slots
from kdcache.extraction.worker import Event, WorkerConfig
from kdcache.log import logger
from kdcache.prefetch import prefetch
from kdcache.streams.backbone import BackboneStream
from kdcache.workers import StopFlag

QUEUED = 64  # clips that may wait for the first thread; where there are slots, these are fewer
LOOK_S = 0.05  # between looks whether the run has ended


class DeviceLoop:
    """The threads behind the slots; they run from the start until ``finish`` or ``give_up``.

    Args:
        config: of the run.
        slots: in which clips come; ``None``: with their messages.
        networks: makes the networks, in a thread of this object; ``None``: as the run says.
        emit: is told of clips and shards, in threads.
        stop: is set when the threads have ended by an error, so that decoding ends.
    """

    def __init__(
        self,
        config: WorkerConfig,
        slots: Slots | None,
        networks: Callable[[], Networks] | None,
        emit: Callable[[Event], None],
        stop: StopFlag,
    ) -> None:
        self._config, self._slots, self._emit, self._stop = config, slots, emit, stop
        self._networks = networks or (lambda: Backbones(config.streams, config.device, config.batch, config.compile))
        self._queue: queue.Queue[Prepared | None] = queue.Queue(QUEUED)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kdcache-device", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Clips that wait."""
        return self._queue.qsize()

    def put(self, message: Prepared) -> None:
        """Take a clip; raises the error that has ended the threads."""
        if message.slot is not None and self._slots is not None:
            self._slots.receive(message.slot)
        self._put(message)
        self.check()

    def _put(self, message: Prepared | None) -> None:
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._queue.put(message, timeout=LOOK_S)
                return

    def last(self) -> None:
        """Say that no clip comes after those that came."""
        self._put(None)

    def finish(self) -> None:
        """Return when all clips are committed, after ``last``, or an error keeps them from it."""
        self._thread.join()

    def give_up(self) -> None:
        """End the threads; what is computed is committed, what waits is not computed."""
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise the error that has ended the threads."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with Shelf(self._config, self._emit) as shelf, _pinned(self._slots, self._config.device):
                self._shelve(shelf)
        except GivenUp:
            pass
        except BaseException as error:
            self._error = error
            self._stop.set()
        finally:
            self._ended.set()

    def _shelve(self, shelf: Shelf) -> None:
        streams = [s for s in self._config.streams if isinstance(s, BackboneStream)]
        batches = Batches(streams, self._networks(), self._ended.is_set)
        filled = prefetch(batches.fill(self._received()), 1)
        computed = prefetch(batches.compute(filled), 1)
        try:
            for waiting in batches.gather(computed):
                if waiting.error is None:
                    shelf.add(waiting.clip, waiting.streams)
                else:
                    self._emit(waiting.clip.task.failed("backbone", str(waiting.error)))
        finally:
            self._ended.set()
            computed.close()
            filled.close()

    def _received(self) -> Iterator[Waiting]:
        while True:
            try:
                message = self._queue.get(timeout=LOOK_S)
            except queue.Empty:
                if self._ended.is_set():
                    raise GivenUp from None
                continue
            if message is None:
                return
            yield self._waiting(message)

    def _waiting(self, message: Prepared) -> Waiting:
        clip, slots, slot = message.take(), self._slots, message.slot
        if slots is None or slot is None:
            inputs, clip.inputs = clip.inputs, {}
            return Waiting(clip, message.streams, inputs)
        inputs = {name: slots.array(slot, place) for name, place in message.places.items()}
        return Waiting(clip, message.streams, inputs, lambda: slots.release(slot))


@contextmanager
def _pinned(slots: Slots | None, device: str) -> Iterator[None]:
    """Inside, the slots' pages are locked, so that a GPU copies from them by itself."""
    if slots is None or not device.startswith("cuda"):
        yield
        return
    cuda: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    memory: NDArray[np.uint8] = slots.bytes
    address = memory.ctypes.data

    def lock() -> int:
        with torch.cuda.device(device):
            return int(cuda.cudaHostRegister(address, memory.nbytes, 0))

    with ThreadPoolExecutor(1) as aside:  # CUDA keeps a failure for the next kernel's launch in the same thread
        failed = aside.submit(lock).result()
    if failed:
        logger.warning(
            "%s cannot lock the memory that clips come in (CUDA error %d): copies are slower.", device, failed
        )
    try:
        yield
    finally:
        if not failed:
            with suppress(RuntimeError), torch.cuda.device(device):  # of a broken device, which the run's error names
                cuda.cudaHostUnregister(address)
