"""The worker: one unit of work from sources to committed shards. Decoding, motion and the backbone overlap."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdcache.errors import ClipError, KdcacheError
from kdcache.extraction.frames import ClipFrames, read_clips
from kdcache.extraction.motion import ClipInputs, FlowMemory, prepare
from kdcache.extraction.plan import SHARD_BYTES, SHARD_SECONDS, Task, WorkUnit
from kdcache.extraction.skeletons import ClipJoints, draw, read_joints
from kdcache.prefetch import prefetch
from kdcache.sources import open_source
from kdcache.store.failures import Failure
from kdcache.store.writer import Committed, Record, commit_shard
from kdcache.streams.base import Stream

if TYPE_CHECKING:
    from kdcache.extraction.features import Backbones

PREFETCH = 2  # clips held between two steps of the pipeline


class Flag(Protocol):
    """Something that tells that the run is to stop after the clip at hand."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


@dataclass(frozen=True)
class Started:
    """A source is being opened; if the worker dies now, this is the one to blame."""

    path: str


@dataclass(frozen=True)
class Done:
    """A shard with these clips has its final name."""

    shard: Committed
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Computed:
    """A clip was computed and waits for its shard."""

    clip_id: str


Event = Started | Failure | Computed | Done


@dataclass(frozen=True)
class WorkerConfig:
    """What all units of a run share."""

    out: Path
    streams: tuple[Stream, ...]
    weights: dict[str, Any]
    device: str
    batch: int | None
    threads: int
    decoder: str
    codec: str | None


def run_unit(unit: WorkUnit, config: WorkerConfig, nets: Backbones, emit: Callable[[Event], None], stop: Flag) -> None:
    """Compute and commit a unit's clips; clips that cannot be had are emitted as failures.

    When ``stop`` is set, the clips finished by then are committed and the rest is left for the next call.
    """
    streams = [s for s in config.streams if s.name in unit.streams]
    features = [s for s in streams if s.kind == "feature"]
    recipes = {s.name: s.recipe for s in streams}
    records: list[Record] = []
    tasks: list[Task] = []
    waiting: list[ClipInputs] = []
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
        for stream in features:
            for clip, result in zip(clips, nets.features(clips, stream), strict=True):
                if isinstance(result, ClipError):
                    bad[clip.task.clip_id] = result
                else:
                    clip.arrays[stream.name] = result
        for clip in clips:
            if clip.task.clip_id in bad:
                emit(_failure(clip.task, "backbone", bad[clip.task.clip_id]))
                continue
            task = clip.task
            records.append(Record(task.row, clip.origin, task.keys, clip.frames, clip.arrays))
            tasks.append(task)
            emit(Computed(task.clip_id))
            held += _size(clip)
            if held >= SHARD_BYTES or time.monotonic() - opened >= SHARD_SECONDS:
                commit()

    steps = prefetch(prepared(prefetch(decoded(unit, streams, config, stop), PREFETCH), streams, config), PREFETCH)
    for item in steps:
        if not isinstance(item, ClipInputs):
            emit(item)
            continue
        waiting.append(item)
        if sum(_segments(clip) for clip in waiting) >= nets.batch:
            finish(waiting)
            waiting = []
    if waiting:
        finish(waiting)
    commit()


def _segments(clip: ClipInputs) -> int:
    """Segments a clip adds to a batch; a clip without a backbone is finished at once."""
    return max((len(a) for a in clip.inputs.values()), default=1_000_000)


def _size(clip: ClipInputs) -> int:
    return sum(sum(map(len, a)) if isinstance(a, list) else a.nbytes for a in clip.arrays.values())


def decoded(
    unit: WorkUnit, streams: list[Stream], config: WorkerConfig, stop: Flag
) -> Iterator[ClipFrames | ClipJoints | Failure | Started]:
    for path, group in itertools.groupby(unit.tasks, key=lambda t: t.path):
        if stop.is_set():
            return
        yield Started(path)
        left = {task.clip_id: task for task in group}
        try:
            for item in _clips(path, list(left.values()), streams, config):
                task = item[0] if isinstance(item, tuple) else item.task
                del left[task.clip_id]
                yield _failure(task, "sample", item[1]) if isinstance(item, tuple) else item
                if stop.is_set():
                    return
        except KdcacheError as error:
            for task in left.values():
                yield _failure(task, "decode", error)


def _clips(
    path: str, tasks: list[Task], streams: list[Stream], config: WorkerConfig
) -> Iterator[ClipFrames | ClipJoints | tuple[Task, ClipError]]:
    if any(s.imaging is not None for s in streams):  # then all of them: ``resolve`` sees to it
        yield from read_joints(path, tasks)
        return
    fps = tasks[0].row.get("fps")
    with open_source(path, decoder=config.decoder, fps=float(fps) if fps else None) as source:
        yield from read_clips(source, tasks, streams)


def prepared(
    items: Iterator[ClipFrames | ClipJoints | Failure | Started], streams: list[Stream], config: WorkerConfig
) -> Iterator[ClipInputs | Failure | Started]:
    memory = FlowMemory(config.threads)
    for item in items:
        if isinstance(item, ClipJoints):
            yield draw(item, streams)
            continue
        if not isinstance(item, ClipFrames):
            if isinstance(item, Started):
                memory = FlowMemory(config.threads)
            yield item
            continue
        try:
            yield prepare(item, streams, memory)
        except KdcacheError as error:
            yield _failure(item.task, "motion", error)


def _failure(task: Task, stage: str, error: KdcacheError) -> Failure:
    return Failure(task.clip_id, str(task.row["source"]), stage, str(error), next(iter(task.keys.values())))
