"""Features of a source, one degree of progress after the other, as extraction would cache them.

Nothing after part n is decoded before its features were handed on. What is known of a file from the start is its
length, which is what degrees of progress are shares of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError
from kdcache.extraction.frames import FrameRequest, read_requests, request_frames
from kdcache.extraction.motion import ClipInputs, FlowMemory, prepare
from kdcache.extraction.plan import Task
from kdcache.levels import LevelSpec
from kdcache.runtime import cores
from kdcache.sampling import clip_range
from kdcache.skeletons import open_skeleton
from kdcache.skeletons.image import level_image
from kdcache.sources import open_source
from kdcache.streams.base import Stream


@dataclass(frozen=True)
class ClipSpan:
    """A span of a source: seconds, half-open, NaN for its start or end; ``fps`` of folders and tars of images."""

    path: Path
    start_s: float
    stop_s: float
    fps: float | None = None


@dataclass(frozen=True)
class StreamingFeature:
    """What is known after part n: the vector ``[d]`` of that level as it would be cached, and when it was complete."""

    features: NDArray[Any]
    seconds: float


def stream_features(stream: Stream, clip: ClipSpan, weights: Any, device: str) -> Iterator[StreamingFeature]:
    """The first view of each level of a clip in turn.

    Raises:
        SourceError: a source that cannot be read.
        ClipError: a span that it does not have, or features that are not finite.
    """
    from kdcache.extraction.features import Backbones

    one = _one(stream)
    nets = Backbones([one], {str(one.backbone): weights}, device, batch=1)
    for seconds, level in (_joints if stream.imaging is not None else _frames)(stream, one, clip):
        features = nets.features([level], one)[0]
        if isinstance(features, ClipError):
            raise features
        yield StreamingFeature(features[0, 0], seconds)


def _one(stream: Stream) -> Stream:
    """The same stream for a clip of one level, seen in the view that runs answer from."""
    views = stream.views and replace(stream.views, names=stream.views.names[:1])
    return replace(stream, views=views, progress=stream.progress and LevelSpec(1))


def _frames(stream: Stream, one: Stream, clip: ClipSpan) -> Iterator[tuple[float, ClipInputs]]:
    """Segments of a video, each when its last frame has been decoded."""
    assert stream.progress is not None
    with open_source(clip.path, stream.recipe["decoder"], clip.fps) as source:
        low, high = clip_range(source.times, clip.start_s, clip.stop_s)
        ends = [*source.times, source.info.duration_s]
        stops = low + stream.progress.spans(high - low)[:, 1]
        requests = _levels(request_frames(_task(clip), [stream], source.times), stream)
        memory = FlowMemory(cores())
        for stop, frames in zip(stops, read_requests(source, requests, [stream]), strict=True):
            yield float(ends[stop]), prepare(frames, [one], memory)


def _levels(request: FrameRequest, stream: Stream) -> list[FrameRequest]:
    """What each level takes of what the clip takes."""
    assert stream.progress is not None
    count = stream.progress.levels
    levels = []
    for n in range(count):
        indices, pairs = (
            {name: np.split(frames, count)[n] for name, frames in of.items()} for of in (request.indices, request.pairs)
        )
        used = np.concatenate([frames.ravel() for frames in (*indices.values(), *pairs.values())])
        levels.append(FrameRequest(request.task, indices, pairs, int(used.min()), int(used.max())))
    return levels


def _joints(stream: Stream, one: Stream, clip: ClipSpan) -> Iterator[tuple[float, ClipInputs]]:
    """Images of a skeleton, each from the frames up to its end."""
    imaging = stream.imaging
    assert imaging is not None
    skeleton = open_skeleton(clip.path).span(clip.start_s, clip.stop_s)
    for start, stop in imaging.progress.spans(skeleton.total).tolist():
        image = level_image(skeleton, start, stop, imaging.limits, imaging.resize)
        level = ClipInputs(_task(clip), {}, {}, inputs={one.name: image[None, None]})
        yield (skeleton.begin + stop) / skeleton.fps, level


def _task(clip: ClipSpan) -> Task:
    path = str(clip.path)
    return Task({"clip_id": path}, path, "", clip.start_s, clip.stop_s, {})
