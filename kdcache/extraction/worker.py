"""The worker: one unit of work from sources to committed shards. Decoding, motion and the backbone overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, DeviceError, KdcacheError, RemoteError
from kdcache.extraction.fetching import ChangedSource, SourceWatch, readable
from kdcache.extraction.plan import SHARD_BYTES, SHARD_SECONDS, Task, WorkUnit
from kdcache.prefetch import prefetch
from kdcache.sources import SourceCache, content_digest
from kdcache.store.failures import Failure
from kdcache.store.quantised import Quantised
from kdcache.store.writer import Committed, Record, commit_shard
from kdcache.streams.backbone import BackboneStream, passes
from kdcache.streams.base import Array, ClipData, ClipSpan, Payload, Stream
from kdcache.workers import StopFlag

if TYPE_CHECKING:
    from kdcache.extraction.features import Backbones

PREFETCH = 2  # clips held between two steps of the pipeline


@dataclass(frozen=True)
class Started:
    """A source is being opened; if the worker dies now, this is the one to blame."""

    path: str


@dataclass(frozen=True)
class Hashed:
    """All bytes of a source were read."""

    place: tuple[str, int, int]
    """Its path, size and time of change; see ``kdcache.sources.signature``."""
    content: str


@dataclass(frozen=True)
class Done:
    """A shard with these clips has its final name."""

    shard: Committed
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Computed:
    """A clip was computed and waits for its shard."""

    clip_id: str


@dataclass(frozen=True)
class Recovered:
    """A clip of a shard whose worker died before it could say so."""

    task: Task
    shard: str
    row: int
    digests: dict[str, str]
    """Stream → digest."""

    @property
    def clip_id(self) -> str:
        """Of the clip."""
        return self.task.clip_id


Event = Started | Hashed | Failure | Computed | Done | Recovered


@dataclass(frozen=True)
class WorkerConfig:
    """What all units of a run share."""

    out: Path
    streams: tuple[Stream, ...]
    device: str
    batch: int | None
    threads: int
    codec: str | None
    sources: SourceCache | None = None
    """Where sources at addresses are fetched into; None where all are local."""
    compile: bool = False
    """Whether networks are compiled."""

    @property
    def devices(self) -> list[str]:
        """Several GPUs are separated by commas."""
        return self.device.split(",")

    def of_each_device(self) -> list[WorkerConfig]:
        """The same for each device alone."""
        return [replace(self, device=device) for device in self.devices]


@dataclass
class ClipInputs:
    """One clip on its way to the networks."""

    task: Task
    origin: dict[str, Any]
    frames: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    """Stream → source frame indices."""
    arrays: dict[str, Payload | Quantised] = field(default_factory=dict)
    """Stream → what is cached, of finished streams."""
    inputs: dict[str, Array] = field(default_factory=dict)
    """First stream of a network (``passes``) → the network's input, [segments, …]."""

    @property
    def nbytes(self) -> int:
        """Size of what is cached."""
        return sum(sum(map(len, a)) if isinstance(a, list) else a.nbytes for a in self.arrays.values())


def run_unit(
    unit: WorkUnit, config: WorkerConfig, nets: Backbones, emit: Callable[[Event], None], stop: StopFlag
) -> None:
    """Compute and commit a unit's clips; clips that cannot be had are emitted as failures.

    When ``stop`` is set, the clips finished by then are committed and the rest is left for the next call.
    """
    streams = [s for s in config.streams if s.name in unit.streams]
    networks = passes(streams)
    recipes = {s.name: s.recipe for s in streams}
    records: list[Record] = []
    tasks: list[Task] = []
    waiting: dict[tuple[int | None, ...], list[ClipInputs]] = {}  # by the networks that compute them
    held, opened = 0, time.monotonic()

    def commit() -> None:
        nonlocal held, opened
        if records:
            emit(Done(commit_shard(config.out, records, recipes, codec=config.codec), tuple(tasks)))
            records.clear()
            tasks.clear()
        held, opened = 0, time.monotonic()

    def finish(clips: list[ClipInputs]) -> None:
        nonlocal held
        bad: dict[str, ClipError] = {}
        for of_network in networks:
            part = of_network[0].part_of(clips[0].task.clip_id)  # all of ``clips`` have the same
            found = nets.several([clip.inputs[of_network[0].name] for clip in clips], of_network, part)
            for name, results in found.items():
                for clip, result in zip(clips, results, strict=True):
                    if isinstance(result, ClipError):
                        bad[clip.task.clip_id] = result
                    else:
                        clip.arrays[name] = result
        for clip in clips:
            if clip.task.clip_id in bad:
                emit(_failure(clip.task, "backbone", bad[clip.task.clip_id]))
                continue
            task = clip.task
            records.append(Record(task.row, clip.origin, task.keys, clip.frames, clip.arrays))
            tasks.append(task)
            emit(Computed(task.clip_id))
            held += clip.nbytes
            if held >= SHARD_BYTES or time.monotonic() - opened >= SHARD_SECONDS:
                commit()

    unreachable: RemoteError | None = None
    try:
        for item in prefetch(prepared(prefetch(decoded(unit, streams, config, stop), PREFETCH), streams), PREFETCH):
            if not isinstance(item, ClipInputs):
                emit(item)
                continue
            parts = tuple(of_network[0].part_of(item.task.clip_id) for of_network in networks)
            alike = waiting.setdefault(parts, [])
            alike.append(item)
            if all(sum(len(c.inputs[n]) for c in alike) >= nets.size(own) for n, own in item.inputs.items()):
                finish(waiting.pop(parts))
    except RemoteError as error:  # the run ends, and what was decoded by then is kept
        unreachable = error
    for alike in waiting.values():
        finish(alike)
    commit()
    if unreachable is not None:
        raise unreachable


def decoded(
    unit: WorkUnit, streams: list[Stream], config: WorkerConfig, stop: StopFlag
) -> Iterator[tuple[Task, ClipData] | Failure | Started | Hashed]:
    """Read each source of a unit once: its clips as they become complete, and those that cannot be had."""
    for source in readable(unit, config.sources, stop):
        with source.hold:
            if stop.is_set():
                return
            remote = source.tasks[0].path
            yield Started(remote)
            if source.error is not None:  # the network's fault is none of the clip's: without a key, it is tried again
                yield from (t.failed("fetch", str(source.error))._replace(key="") for t in source.tasks)
                continue
            left, spans = dict[int, Task](), list[ClipSpan]()
            for task in source.tasks:
                try:
                    spans.append(replace(task.span, path=source.path))
                    left[len(left)] = task
                except ClipError as error:
                    yield _failure(task, "sample", error)
            if not spans:
                continue
            try:
                watch = SourceWatch.of(source)
                if source.path in unit.hashed:
                    yield Hashed((source.path, *watch.look), content_digest(source.path))
                for number, clip in streams[0].read(spans, streams, config.threads, config.device):
                    watch.check()
                    task = left.pop(number)
                    yield _failure(task, "sample", clip) if isinstance(clip, ClipError) else (task, clip)
                    if stop.is_set():
                        return
            except ChangedSource as error:  # without a key: tried again, whatever it is by then
                yield from (_failure(task, "open", error)._replace(key="") for task in left.values())
            except (KdcacheError, MemoryError, cv2.error) as error:
                for task in left.values():
                    failure = _failure(task, "decode", error)
                    yield failure._replace(reason=failure.reason.replace(source.path, remote))


def prepared(
    items: Iterator[tuple[Task, ClipData] | Failure | Started | Hashed], streams: list[Stream]
) -> Iterator[ClipInputs | Failure | Started | Hashed]:
    """Compute everything of each clip that needs no network."""
    first = {of_network[0].name for of_network in passes(streams)}
    for item in items:
        if isinstance(item, (Failure, Started, Hashed)):
            yield item
            continue
        task, clip = item
        done = ClipInputs(task, clip.origin)
        try:
            for stream in streams:
                done.frames[stream.name] = stream.frames(clip)
                if not isinstance(stream, BackboneStream):
                    done.arrays[stream.name] = stream.compute(clip)
                elif stream.name in first:
                    done.inputs[stream.name] = stream.compute(clip)
        except DeviceError:  # of flow on a GPU: no clip's fault
            raise
        except (KdcacheError, MemoryError, cv2.error) as error:
            yield _failure(task, "motion", error)
            continue
        yield done


def _failure(task: Task, stage: str, error: Exception) -> Failure:
    """``error``: of this clip alone. What a library ran out of memory with is no fault of the file."""
    if isinstance(error, KdcacheError):
        return task.failed(stage, str(error))
    reason = f"memory does not suffice for it ({error or 'MemoryError'}); free some or take fewer --workers, then"
    if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
        reason = f"OpenCV cannot take its frames ({error.err or error}); check the source, then"
    return task.failed(stage, f"{task.path}: {reason} --retry-failed.")
