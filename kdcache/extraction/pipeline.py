"""Extraction on GPUs: one process drives each, and several others decode for them.

    decoding processes → slots of shared memory → ``DeviceLoop`` → shards

One GPU is driven by this process, several by a process each (``DeviceProcess``), which takes the clips of any decoder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from kdcache.backbones.custom import in_workers, is_external
from kdcache.errors import KdcacheError
from kdcache.extraction.batches import Networks
from kdcache.extraction.deaths import after_death
from kdcache.extraction.decoding import DecodingWork, Message, Prepared, input_bytes
from kdcache.extraction.device_loop import DeviceLoop
from kdcache.extraction.device_process import DeviceProcess
from kdcache.extraction.plan import WorkUnit
from kdcache.extraction.slots import Slots, make_slots
from kdcache.extraction.worker import Event, WorkerConfig
from kdcache.streams.backbone import BackboneStream
from kdcache.workers import Processes, StopFlag, Work


def run_pipeline(
    units: Sequence[WorkUnit],
    config: WorkerConfig,
    workers: int,
    on_event: Callable[[Event], None],
    stop: StopFlag,
) -> None:
    """Run units with one set of networks a device, and ``workers`` processes that decode.

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
        drive(units, config, work, count, slots, None, on_event, stop)
    finally:
        if slots is not None:
            slots.close()


def drive(
    units: Sequence[Any],
    config: WorkerConfig,
    work: Work[Any, Message],
    workers: int,
    slots: Slots | None,
    networks: Callable[[], Networks] | None,
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
            min(loops, key=lambda loop: loop.backlog).put(message)
        else:
            emit(message)

    def on_death(unit: WorkUnit | None, messages: Sequence[Message], how: str) -> list[WorkUnit]:
        return after_death(unit, messages, how, deaths, emit)

    loops: list[DeviceLoop | DeviceProcess] = []
    try:
        if len(config.devices) == 1:
            loops.append(DeviceLoop(config, slots, networks, emit, stop))
        else:
            loops += [DeviceProcess(one, slots, emit, stop) for one in config.of_each_device()]
        try:
            Processes(work, workers, on_death).run(units, hear, stop)
        except KdcacheError:
            _finish(loops)  # what was handed over is kept
            raise
        _finish(loops)
    finally:
        for loop in loops:
            loop.give_up()


def _finish(loops: Sequence[DeviceLoop | DeviceProcess]) -> None:
    """Wait until every device has computed what it was given; raises the error of the first that has one."""
    for loop in loops:
        loop.last()
    for loop in loops:
        loop.finish()
    for loop in loops:
        loop.check()
