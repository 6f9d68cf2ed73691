"""From one opened source to the frames of its clips: each needed frame is decoded once and held while it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError
from kdcache.extraction.plan import Task
from kdcache.motion.stacks import flow_stacks
from kdcache.sampling import clip_range, within
from kdcache.sources import Source
from kdcache.streams.base import DENSE, Stream
from kdcache.views import resize_short_side

Frame = NDArray[np.uint8]  # [H, W, 3] RGB


@dataclass
class FrameRequest:
    """Which source frames one clip takes."""

    task: Task
    indices: dict[str, NDArray[np.int32]]  # stream → sampled frames [T], with levels [N × T], one after the other
    pairs: dict[str, NDArray[np.int32]]  # stream → frame pairs [n, 2] between which flow is computed
    first: int
    last: int


@dataclass
class ClipFrames:
    """One clip, decoded: frames by (source index, short side)."""

    task: Task
    indices: dict[str, NDArray[np.int32]]
    pairs: dict[str, NDArray[np.int32]]
    pixels: dict[tuple[int, int], Frame]
    origin: dict[str, Any]
    first: int  # no clip still to come needs a frame before this one

    def stack(self, stream: Stream) -> NDArray[np.uint8]:
        """The sampled frames of a stream, uint8 [T, H, W, 3]."""
        return np.stack([self.pixels[int(i), stream.short_side] for i in self.indices[stream.name]])


def flow_pairs(
    indices: NDArray[np.int32], low: int, high: int, *, dense: bool, fps: float | None, stack: int = 1
) -> NDArray[np.int32]:
    """Frame pairs between which a stream's flow is computed; never a frame outside ``[low, high)``.

    Args:
        indices: sampled frames, int32 [T].
        dense: a whole-clip stream: T − 1 fields, each from a frame to the next sampled one. Otherwise a backbone's
            segment: T fields, one a frame.
        fps: the sampling rate; ``None`` pairs a segment's frame with the source's next frame [reconstructed].
        stack: fields of a segment's frame. More than one are consecutive in the source whatever ``fps`` is, centred on
            the frame and clamped at the clip's ends; see ``kdcache.motion.stacks.flow_stacks``.

    Returns:
        int32 [T − 1, 2] (dense) or [T × stack, 2]. The last frame of a segment has no successor in the clip: it gets
        the field that leads to it, so that nothing beyond the clip is seen.
    """
    if stack > 1:
        first = low + flow_stacks(max(1, high - low - 1), indices - low, stack).ravel()
        return np.stack([first, np.minimum(first + 1, high - 1)], axis=1).astype(np.int32)
    if dense:
        return np.stack([indices[:-1], indices[1:]], axis=1).astype(np.int32)
    if fps is None:
        first = np.clip(indices, low, max(low, high - 2))
        return np.stack([first, np.minimum(first + 1, high - 1)], axis=1).astype(np.int32)
    if len(indices) == 1:
        return np.stack([indices, indices], axis=1).astype(np.int32)
    pairs = np.stack([indices[:-1], indices[1:]], axis=1)
    return np.concatenate([pairs, pairs[-1:]]).astype(np.int32)


def request_frames(task: Task, streams: Sequence[Stream], times: NDArray[np.float64]) -> FrameRequest:
    """Sample a clip for each of its streams.

    Raises:
        ClipError: the span does not lie within the source.
    """
    whole = clip_range(times, task.start_s, task.stop_s)
    indices: dict[str, NDArray[np.int32]] = {}
    pairs: dict[str, NDArray[np.int32]] = {}
    for stream in streams:
        parts = [(*whole, task.start_s, task.stop_s)] if stream.progress is None else _levels(stream, times, *whole)
        sampled = [within(times, *part, stream.sampling) for part in parts]
        indices[stream.name] = np.concatenate(sampled)
        if stream.needs_flow:
            dense, fps = stream.kind in DENSE, stream.sampling.fps
            fields = [
                flow_pairs(i, low, high, dense=dense, fps=fps, stack=stream.stack)
                for i, (low, high, *_) in zip(sampled, parts, strict=True)
            ]
            pairs[stream.name] = np.concatenate(fields)
    used = np.concatenate([*indices.values(), *(p.ravel() for p in pairs.values())])
    return FrameRequest(task, indices, pairs, int(used.min()), int(used.max()))


def _levels(stream: Stream, times: NDArray[np.float64], low: int, high: int) -> list[tuple[int, int, float, float]]:
    """What each degree of progress may look at, as ``within`` takes it; no level sees a frame after its end."""
    assert stream.progress is not None
    spans = (low + stream.progress.spans(high - low)).tolist()
    return [(a, b, float(times[a]), float(times[b]) if b < len(times) else math.nan) for a, b in spans]


def read_clips(
    source: Source, tasks: Sequence[Task], streams: Sequence[Stream]
) -> Iterator[ClipFrames | tuple[Task, ClipError]]:
    """Decode a source forward once and yield its clips as they become complete.

    Memory holds only the frames that a clip still to come needs.

    Yields:
        A ``ClipFrames``, or a task with the ``ClipError`` that its span gave; in the order in which clips end.

    Raises:
        SourceError: the source is damaged; clips yielded before are whole.
    """
    requests: list[FrameRequest] = []
    for task in tasks:
        try:
            requests.append(request_frames(task, streams, source.times))
        except ClipError as error:
            yield task, error
    yield from read_requests(source, sorted(requests, key=lambda n: (n.last, n.first)), streams)


def read_requests(source: Source, requests: Sequence[FrameRequest], streams: Sequence[Stream]) -> Iterator[ClipFrames]:
    """Decode forward once and yield what was asked for in that order; a request's last frame is the last that is read.

    ``requests`` ascend by their last frame. Raises ``SourceError`` as ``read_clips``.
    """
    if not requests:
        return
    wanted = np.unique(np.concatenate([a.ravel() for n in requests for a in (*n.indices.values(), *n.pairs.values())]))
    first_later = np.minimum.accumulate([n.first for n in requests][::-1])[::-1]  # earliest frame needed from here on
    sizes = {s.short_side for s in streams}
    held: dict[tuple[int, int], Frame] = {}
    done = 0
    for index, frame in zip(wanted.tolist(), source.read(wanted), strict=True):
        for short_side in sizes:
            held[index, short_side] = resize_short_side(frame, short_side)
        while done < len(requests) and requests[done].last <= index:
            request = requests[done]
            yield ClipFrames(
                request.task,
                request.indices,
                request.pairs,
                _select(held, request),
                _origin(source, request.task),
                int(first_later[done]),
            )
            done += 1
            earliest = first_later[done] if done < len(requests) else index + 1
            for key in [k for k in held if k[0] < earliest]:
                del held[key]


def _select(held: dict[tuple[int, int], Frame], request: FrameRequest) -> dict[tuple[int, int], Frame]:
    return {key: frame for key, frame in held.items() if request.first <= key[0] <= request.last}


def _origin(source: Source, task: Task) -> dict[str, Any]:
    info = source.info
    return {
        "fingerprint": task.fingerprint,
        "decoder": f"{info.backend} {info.backend_version}",
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "frames": len(source.times),
    }
