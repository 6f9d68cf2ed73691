"""What an extraction will take, before anything is computed: streams without their weights, time, processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from kdcache import backbones
from kdcache.backbones.published import published_for
from kdcache.backbones.weights import Choice, folders
from kdcache.errors import WeightsError
from kdcache.extraction.plan import SHARD_BYTES, Plan, WorkUnit
from kdcache.extraction.worker import ClipInputs, WorkerConfig, decoded, prepared
from kdcache.runtime import cores, free_bytes, kept_threads, limit_threads, resolve_device, worker_count
from kdcache.streams.backbone import BackboneStream, passes
from kdcache.streams.base import Stream
from kdcache.streams.flow_memory import engine_on
from kdcache.streams.registry import named, resolve
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import VideoStream
from kdcache.workers import StopFlag

if TYPE_CHECKING:
    from kdcache.extraction.features import Backbones

WORKER_BYTES = 5 * 2**28 + 2 * SHARD_BYTES  # 1.6 GB were measured for I3D at 224 px, the heaviest; with its shard twice
GPU_WORKER_BYTES = 4 * 2**30  # [reconstructed] of a GPU's memory: CUDA's own, and a few hundred pairs of frames
DECODER_BYTES = 2**30  # [reconstructed] of one that has no network: what it decodes ahead, and its slots


def automatic_workers(workers: int | str, device: str | None = None, streams: Sequence[Stream] = ()) -> int:
    """Processes of an extraction; for ``auto`` one a core, as far as memory allows. Beside a GPU they only decode, and
    compute flow or decode on it.

    Args:
        workers: a number, or ``auto``.
        device: as resolved; ``None``: not known yet, and not asked, for that loads torch.
        streams: of the run.

    Raises:
        OptionError: neither.
    """
    if device in (None, "cpu"):
        return worker_count(workers, WORKER_BYTES)
    count = worker_count(workers, DECODER_BYTES)
    of_videos = [s for s in streams if isinstance(s, VideoStream)]
    flow = any(s.flow_engine is not None and engine_on(device, s.flow_engine) != "cpu" for s in of_videos)
    if workers == "auto" and (flow or any(s.decoder == "torchcodec" for s in of_videos)):
        return max(1, min(count, sum(free_bytes(resolve_device(one)) // GPU_WORKER_BYTES for one in device.split(","))))
    return count


def resolve_without_weights(
    names: Sequence[str], settings: StreamSettings, weights: Mapping[str, Any] | None
) -> tuple[list[Stream], dict[str, str]]:
    """As ``streams.registry.resolve``, but nothing is downloaded, and weights that are not here are no error.

    Returns:
        The streams, and stream → why its weights are not here. Such a stream has another recipe than it will have.
    """
    given = named(weights)
    backbone_of = {name: backbones.canonical(name.partition("/")[0]) for name in names}
    lacking = {name: why for name, of in backbone_of.items() if of not in given and (why := _not_here(of))}

    def resolved(some: Sequence[str]) -> list[Stream]:
        placeholders = {backbone_of[name]: Choice(seed=0) for name in lacking}
        return resolve(some, settings, given | placeholders)

    try:
        return resolved(names), lacking
    except WeightsError:
        for name in names:
            try:
                resolved([name])
            except WeightsError as error:
                lacking[name] = str(error)
    return resolved(names), lacking


def _not_here(backbone: str) -> str | None:
    """Why the published weights of a backbone would be fetched; ``None`` where they are here or there are none."""
    row = published_for(backbone)
    if row is None or any((folder / row.file).is_file() for folder in folders()):
        return None
    return f"{row.file} is not on this machine"


def estimate_seconds(plan: Plan, config: WorkerConfig, workers: int) -> float:
    """Seconds until all workers have finished; nothing is written. Sources that cannot be read cost nothing here.

    Two clips are computed with the threads that a worker has. No more workers count than there are cores, however many
    are asked for, nor more than there are units of work. They share the GPUs: these have their part divided
    among themselves, and compute while they decode.
    """
    if not plan.units:
        return 0.0
    with kept_threads():
        limit_threads(config.threads)
        reading, networks = _seconds_alone(plan, config.of_each_device()[0])
    share = min(workers, cores(), len(plan.units))
    return (
        (reading + networks) / share if config.device == "cpu" else max(reading / share, networks / len(config.devices))
    )


def _seconds_alone(plan: Plan, config: WorkerConfig) -> tuple[float, float]:
    """Seconds that one worker would take for all but the networks, and that these would take in full batches."""
    from kdcache.extraction.features import Backbones

    reading = networks = 0.0
    nets = Backbones(config.streams, config.device, config.batch)
    for names in {unit.streams for unit in plan.units}:
        tasks = [t for unit in plan.units if unit.streams == names for t in unit.tasks]
        streams = [s for s in config.streams if s.name in names]
        networks_of = passes(streams)
        taken: list[tuple[float, float]] = []
        # The first clip also pays for what happens once (compilation, buffers): the second one is the measure.
        for task in (tasks[0], tasks[-1]):
            begin = time.perf_counter()
            unit = WorkUnit(names, (task,))
            clips = list(prepared(decoded(unit, streams, config, StopFlag()), streams))
            read = time.perf_counter() - begin
            computed = 0.0
            for clip in clips:
                if isinstance(clip, ClipInputs):
                    computed += sum(_seconds_in_batch(nets, its, clip.inputs[its[0].name]) for its in networks_of)
            taken.append((read, computed))
        reading += taken[-1][0] * len(tasks)
        networks += taken[-1][1] * len(tasks)
    return reading, networks


def _seconds_in_batch(nets: Backbones, streams: Sequence[BackboneStream], segments: NDArray[Any]) -> float:
    """Of one clip in a batch that is full, whatever is in it."""
    alike = max(1, nets.size(segments) // len(segments))
    begin = time.perf_counter()
    nets.several([segments] * alike, streams)
    return (time.perf_counter() - begin) / alike
