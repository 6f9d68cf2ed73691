"""Extraction on a GPU: one process drives it, this one, and several others decode for it.

    decoding processes → slots of shared memory → fill → compute → gather → shelf → shards

What stands right of the slots are threads, each a step ahead of the next: while networks compute one batch, the clips
of the next are copied, those of the last put together, and full shards written.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.backbones.custom import in_workers, is_external
from kdcache.errors import KdcacheError
from kdcache.extraction.batches import Batches, GivenUp, Networks, Waiting
from kdcache.extraction.deaths import after_death
from kdcache.extraction.decoding import DecodingWork, Message, Prepared, input_bytes
from kdcache.extraction.features import Backbones
from kdcache.extraction.plan import WorkUnit
from kdcache.extraction.shelf import Shelf
from kdcache.extraction.slots import Slots, make_slots
from kdcache.extraction.worker import Event, WorkerConfig
from kdcache.log import logger
from kdcache.prefetch import prefetch
from kdcache.streams.backbone import BackboneStream
from kdcache.workers import Processes, StopFlag, Work

QUEUED = 64  # clips that may wait for the first thread; where there are slots, these are fewer
LOOK_S = 0.05  # between looks whether the run has ended


def run_pipeline(
    units: Sequence[WorkUnit],
    config: WorkerConfig,
    workers: int,
    on_event: Callable[[Event], None],
    stop: StopFlag,
) -> None:
    """Run units with one set of networks in this process, and ``workers`` processes that decode.

    ``on_event`` is called in several threads, one at a time. A decoding process that dies is replaced; it loses no clip
    that it has handed over. A source at which two die is listed as failed and left out.

    Raises:
        KdcacheError: what cannot be gone on from. What was computed by then is committed.
    """
    count = min(workers, len(units))
    slots = make_slots(count, input_bytes(config.streams))
    own = [s.backbone for s in config.streams if isinstance(s, BackboneStream) and is_external(s.backbone)]
    work = DecodingWork(config, None if slots is None else slots.handle, in_workers(own) if own else None)
    try:
        drive(
            units,
            config,
            work,
            count,
            slots,
            lambda: Backbones(config.streams, config.device, config.batch),
            on_event,
            stop,
        )
    finally:
        if slots is not None:
            slots.close()


def drive(
    units: Sequence[Any],
    config: WorkerConfig,
    work: Work[Any, Message],
    workers: int,
    slots: Slots | None,
    networks: Callable[[], Networks],
    on_event: Callable[[Event], None],
    stop: StopFlag,
) -> None:
    """``run_pipeline`` with other decoding processes, or with other networks."""
    lock = threading.Lock()
    deaths: dict[str, int] = {}

    def emit(event: Event) -> None:
        with lock:
            on_event(event)

    def hear(message: Message) -> None:
        if isinstance(message, Prepared):
            loop.put(message)
        else:
            emit(message)

    def on_death(unit: WorkUnit | None, messages: Sequence[Message], how: str) -> list[WorkUnit]:
        return after_death(unit, messages, how, deaths, emit)

    loop = DeviceLoop(config, slots, networks, emit, stop)
    try:
        try:
            Processes(work, workers, on_death).run(units, hear, stop)
        except KdcacheError:
            loop.finish()  # what was handed over is kept
            raise
        loop.finish()
    finally:
        loop.give_up()


class DeviceLoop:
    """The threads behind the slots; they run from the start until ``finish`` or ``give_up``.

    Args:
        config: of the run.
        slots: in which clips come; ``None``: with their messages.
        networks: makes the networks, in a thread of this object.
        emit: is told of clips and shards, in threads.
        stop: is set when the threads have ended by an error, so that decoding ends.
    """

    def __init__(
        self,
        config: WorkerConfig,
        slots: Slots | None,
        networks: Callable[[], Networks],
        emit: Callable[[Event], None],
        stop: StopFlag,
    ) -> None:
        self._config, self._slots, self._networks, self._emit, self._stop = config, slots, networks, emit, stop
        self._queue: queue.Queue[Prepared | None] = queue.Queue(QUEUED)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kdcache-device", daemon=True)
        self._thread.start()

    def put(self, message: Prepared | None) -> None:
        """Take a clip; raises the error that has ended the threads."""
        if message is not None and message.slot is not None and self._slots is not None:
            self._slots.receive(message.slot)
        while not self._ended.is_set():
            with suppress(queue.Full):
                self._queue.put(message, timeout=LOOK_S)
                return
        self._check()

    def finish(self) -> None:
        """Return when all clips are committed; raises what kept one from it."""
        self.put(None)
        self._thread.join()
        self._check()

    def give_up(self) -> None:
        """End the threads; what is computed is committed, what waits is not computed."""
        self._ended.set()
        self._thread.join()

    def _check(self) -> None:
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
    with torch.cuda.device(device):
        failed = int(cuda.cudaHostRegister(address, memory.nbytes, 0))
    if failed:
        logger.warning(
            "%s cannot lock the memory that clips come in (CUDA error %d): copies are slower.", device, failed
        )
    try:
        yield
    finally:
        if not failed:
            with torch.cuda.device(device):
                cuda.cudaHostUnregister(address)
