"""Overlapping clips of one video: one forward read, against one plain decode of the span they cover, and clip by clip.

    python benchmarks/decode.py [--write]

Needs the real videos (``KDCACHE_SHARED``, default ``../shared``). Clips of 2 s start every 0.5 s; every frame of every
clip is delivered. The plain loops of both libraries go from the start of the file to the last frame of the span. All
are run in turns in one process, and opening the file is part of each. ``cpu_`` ratios compare the processor time of all
threads, which other programs on the machine disturb less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from common import SHARED, compare, main
from kdcache.sources import open_source

VIDEOS = (
    "gtea_s2/S2_Cheese_C1.mp4",
    "videos/SOX5yA1l24A.mp4",
    "videos/v_ZNVhz7ctTq0.mp4",
    "videos/flipping_a_pancake.mkv",
    "videos/v_SoccerJuggling_g23_c01.avi",
)
CLIP_S, EVERY_S = 2.0, 0.5


def clips(path: Path) -> list[np.ndarray]:
    """Frame indices of each clip; the first starts a quarter into the video."""
    with open_source(path) as source:
        times = source.times
    starts = np.arange(times[-1] / 4, times[-1] - CLIP_S, EVERY_S)
    return [np.flatnonzero((times >= s) & (times < s + CLIP_S)) for s in starts]


def forward(path: Path, wanted: list[np.ndarray]) -> int:
    """All clips through one read; frames are held while a clip still to come needs them."""
    held: dict[int, np.ndarray] = {}
    done = delivered = 0
    indices = np.unique(np.concatenate(wanted))
    with open_source(path) as source:
        for index, frame in zip(indices.tolist(), source.read(indices), strict=True):
            held[index] = frame
            while done < len(wanted) and wanted[done][-1] <= index:
                delivered += len([held[int(i)] for i in wanted[done]])
                done += 1
                for old in [i for i in held if done < len(wanted) and i < wanted[done][0]]:
                    del held[old]
    return delivered


def clip_by_clip(path: Path, wanted: list[np.ndarray]) -> int:
    """Each clip by seeking to it, with PyAV, as extraction scripts do."""
    delivered = 0
    with open_source(path, decoder="pyav") as source, av.open(str(path)) as container:
        stream = container.streams.video[0]
        for clip in wanted:
            start = source.times[clip[0]]
            container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= start - 1e-6:
                    frame.to_ndarray(format="rgb24")
                    delivered += 1
                    if frame.time >= source.times[clip[-1]] - 1e-6:
                        break
    return delivered


def plain_pyav(path: Path, last: int) -> None:
    """PyAV's usual loop up to the last frame of the span."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "FRAME"
        container.streams.video[0].codec_context.thread_count = 2
        for i, frame in enumerate(container.decode(video=0)):
            frame.to_ndarray(format="rgb24")
            if i == last:
                break


def plain_decord(path: Path, last: int) -> None:
    """decord's usual loop up to the last frame of the span."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    for _ in range(last + 1):
        reader.next().asnumpy()


def compare_cpu(runs: dict[str, Callable[[], Any]], repeat: int = 5) -> dict[str, float]:
    """Least processor seconds of each run, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in taken.items()}


def measure() -> Iterator[tuple[str, Any]]:
    """One row a video."""
    for name in VIDEOS:
        path = SHARED / name
        wanted = clips(path)
        last = int(wanted[-1][-1])
        runs: dict[str, Callable[[], Any]] = {
            "forward": partial(forward, path, wanted),
            "plain_pyav": partial(plain_pyav, path, last),
            "plain_decord": partial(plain_decord, path, last),
            "clip_by_clip": partial(clip_by_clip, path, wanted),
        }
        seconds, cpu = compare(runs), compare_cpu(runs)
        found = {
            "clips": len(wanted),
            "frames_in_span": last + 1,
            "frames_delivered": int(sum(map(len, wanted))),
            "ms_per_frame_of_span": round(1000 * seconds["forward"] / (last + 1), 3),
            "forward_to_plain_pyav": round(seconds["forward"] / seconds["plain_pyav"], 2),
            "forward_to_plain_decord": round(seconds["forward"] / seconds["plain_decord"], 2),
            "clip_by_clip_to_forward": round(seconds["clip_by_clip"] / seconds["forward"], 2),
            "cpu_forward_to_plain_pyav": round(cpu["forward"] / cpu["plain_pyav"], 2),
            "cpu_clip_by_clip_to_forward": round(cpu["clip_by_clip"] / cpu["forward"], 2),
        }
        yield name, found


if __name__ == "__main__":
    main("decode", measure, __doc__ or "")
