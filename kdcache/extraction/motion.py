"""The whole-clip streams of one clip, and the inputs of its backbones: crops of frames, images of flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.extraction.frames import ClipFrames
from kdcache.extraction.plan import Task
from kdcache.motion.stacks import stacked
from kdcache.streams.base import Stream
from kdcache.views import cut

Array = NDArray[Any]


@dataclass
class ClipInputs:
    """One clip on its way to the backbones."""

    task: Task
    origin: dict[str, Any]
    frames: dict[str, NDArray[np.int32]]
    arrays: dict[str, Array | list[bytes]] = field(default_factory=dict)  # finished streams
    inputs: dict[str, Array] = field(default_factory=dict)  # stream → [V, T, size, size, C], with levels [V × N, …]


class FlowMemory:
    """TV-L1 flow of one source's frame pairs, kept while a later clip may ask for them again."""

    def __init__(self, threads: int) -> None:
        self._fields: dict[tuple[int, int, int], Array] = {}
        self._threads = threads

    def get(self, clip: ClipFrames, pairs: NDArray[np.int32], short_side: int) -> Array:
        """Flow of ``pairs`` [n, 2]: float32 [n, H, W, 2], in pixels of frames with that short side."""
        from kdcache.motion import tvl1_pairs

        fields = self._fields
        for key in [k for k in fields if k[0] < clip.first]:
            del fields[key]
        wanted = [(int(a), int(b), short_side) for a, b in pairs]
        new = sorted({k for k in wanted if k not in fields})
        if new:
            gray = {i: _gray(clip.pixels[i, short_side]) for i in {k[0] for k in new} | {k[1] for k in new}}
            first = np.stack([gray[k[0]] for k in new])
            second = np.stack([gray[k[1]] for k in new])
            fields.update(zip(new, tvl1_pairs(first, second, threads=self._threads), strict=True))
        return np.stack([fields[k] for k in wanted])


def _gray(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def prepare(clip: ClipFrames, streams: Sequence[Stream], memory: FlowMemory) -> ClipInputs:
    """Compute everything of a clip that needs no backbone.

    Raises:
        KdcacheError: motion could not be computed (frames too small, for example).
    """
    done = ClipInputs(clip.task, clip.origin, clip.indices)
    for stream in streams:
        if stream.kind == "feature":
            done.inputs[stream.name] = _backbone_input(clip, stream, memory)
        elif stream.kind == "rgb":
            done.arrays[stream.name] = _rgb(clip, stream)
        elif stream.kind == "idt":
            from kdcache.motion import motion_maps

            done.arrays[stream.name] = motion_maps(clip.stack(stream))
        else:
            done.arrays[stream.name] = _flow(clip, stream, memory)
    return done


def _rgb(clip: ClipFrames, stream: Stream) -> Array | list[bytes]:
    frames = clip.stack(stream)
    if stream.recipe["layout"] != "jpeg":
        return frames
    setting = [cv2.IMWRITE_JPEG_QUALITY, stream.recipe["quality"]]
    return [cv2.imencode(".jpg", cv2.cvtColor(f, cv2.COLOR_RGB2BGR), setting)[1].tobytes() for f in frames]


def _flow(clip: ClipFrames, stream: Stream, memory: FlowMemory) -> Array:
    from kdcache.motion.flow_image import quantise

    pairs = clip.pairs[stream.name]
    if not len(pairs):  # a clip of one frame has no motion
        height, width = clip.pixels[int(clip.indices[stream.name][0]), stream.short_side].shape[:2]
        flow = np.zeros((0, height, width, 2), np.float32)
    else:
        flow = memory.get(clip, pairs, stream.short_side)
    if stream.kind == "flow-warped" and len(pairs):
        from kdcache.motion.camera import homography, warped_flow

        gray = {int(i): _gray(clip.pixels[int(i), stream.short_side]) for i in np.unique(pairs)}
        flow = np.stack(
            [
                warped_flow(field, homography(gray[int(a)], gray[int(b)], field))
                for (a, b), field in zip(pairs, flow, strict=True)
            ]
        )
    return quantise(flow, stream.recipe["bound"]) if stream.recipe["dtype"] == "uint8" else flow


def _backbone_input(clip: ClipFrames, stream: Stream, memory: FlowMemory) -> NDArray[np.uint8]:
    """Segments uint8 [V × N, T, size, size, C]; N is 1 without levels."""
    assert stream.views is not None
    frames = cut(clip.stack(stream), stream.views) if not stream.needs_flow else _flow_input(clip, stream, memory)
    if stream.progress is None:
        return frames
    return frames.reshape(len(frames) * stream.progress.levels, -1, *frames.shape[2:])


def _flow_input(clip: ClipFrames, stream: Stream, memory: FlowMemory) -> NDArray[np.uint8]:
    """Flow of all views as bytes, [V, T, size, size, 2 × stack]; a field that is used several times is cut once."""
    from kdcache.motion.flow_image import quantise

    assert stream.views is not None
    pairs, at = np.unique(clip.pairs[stream.name], axis=0, return_inverse=True)
    at = at.reshape(-1, stream.stack)
    flow = memory.get(clip, pairs, stream.short_side)
    fields = quantise(cut(flow, stream.views, flow=True), stream.recipe["bound"])
    if stream.stack == 1:
        return fields[:, at[:, 0]]
    return np.stack([stacked(view, at.astype(np.int32)) for view in fields])
