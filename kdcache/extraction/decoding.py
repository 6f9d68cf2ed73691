"""A decoding process: sources in, clips that are ready for the networks of another process out. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import prod

import cv2

from kdcache import backbones
from kdcache.backbones.custom import known_here
from kdcache.extraction.plan import Task, WorkUnit
from kdcache.extraction.slots import SlotPlace, SlotsHandle, SlotWriter
from kdcache.extraction.worker import PREFETCH, ClipInputs, Event, WorkerConfig, decoded, prepared
from kdcache.prefetch import prefetch
from kdcache.streams.backbone import passes
from kdcache.streams.base import Stream
from kdcache.workers import StopFlag


@dataclass
class Prepared:
    """A clip was handed over to the process of the networks; what becomes of it no longer depends on its worker."""

    task: Task
    streams: tuple[str, ...]
    """Of its unit."""
    clip: ClipInputs | None
    """Without what lies in the slot. Whoever takes the clip sets this to None: events of a unit are kept."""
    slot: int | None = None
    places: dict[str, SlotPlace] = field(default_factory=dict)
    """Stream → where the input of its network lies in the slot."""

    @property
    def clip_id(self) -> str:
        """Of the clip."""
        return self.task.clip_id

    def take(self) -> ClipInputs:
        """The clip, once."""
        clip, self.clip = self.clip, None
        assert clip is not None
        return clip


Message = Event | Prepared


@dataclass(frozen=True)
class DecodingWork:
    """What every decoding process does: it reads units, and computes everything of their clips but networks."""

    config: WorkerConfig
    slots: SlotsHandle | None
    """``None``: clips go through the pipe."""
    networks: bytes | None = None
    """What makes the user's own networks known there."""

    def start(self, worker: int) -> Callable[[WorkUnit, Callable[[Message], None], StopFlag], None]:
        """See ``kdcache.workers.Work``."""
        if self.networks is not None:
            known_here(self.networks)
        cv2.setNumThreads(self.config.threads)
        writer = None if self.slots is None else SlotWriter(self.slots, worker)
        configs = self.config.of_each_device()
        config = configs[worker % len(configs)]  # flow is computed on it
        return lambda unit, emit, stop: decode_unit(unit, config, writer, emit, stop)


def decode_unit(
    unit: WorkUnit,
    config: WorkerConfig,
    writer: SlotWriter | None,
    emit: Callable[[Message], None],
    stop: StopFlag,
) -> None:
    """Hand over a unit's clips as they become ready; clips that cannot be had are emitted as failures."""
    streams = [s for s in config.streams if s.name in unit.streams]
    with closing(
        prefetch(prepared(prefetch(decoded(unit, streams, config, stop), PREFETCH), streams), PREFETCH)
    ) as items:
        for item in items:
            if not isinstance(item, ClipInputs):
                emit(item)
            elif writer is None or not writer.fits(item.inputs):
                emit(Prepared(item.task, unit.streams, item))
            elif (put := writer.put(item.inputs, stop)) is not None:
                emit(Prepared(item.task, unit.streams, replace(item, inputs={}), *put))
            else:
                return


def input_bytes(streams: Sequence[Stream]) -> int:
    """Bytes of what networks are given of one clip, as an upper estimate: skeletons may be images of float32."""
    total = 0
    for stream, *_ in passes(streams):
        views = 1 if stream.shape is None else stream.shape[0]
        itemsize = 4 if backbones.input_spec(stream.backbone).modality == "skeleton" else 1
        total += views * prod(stream.input_shape) * itemsize + 64
    return total
