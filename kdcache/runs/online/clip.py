"""One clip of a source in place of a cache: what inputs read of it is computed when they ask for it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError
from kdcache.extraction.features import Backbones
from kdcache.manifest import SKELETON
from kdcache.recipe import Recipe
from kdcache.runtime import cores
from kdcache.sampling import clip_range
from kdcache.skeletons import Skeleton, open_skeleton
from kdcache.sources import Source, open_source
from kdcache.store.jpeg import decode_jpeg
from kdcache.store.quantised import Quantised, read_dtype
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import Array, ClipSpan, Payload, Stream
from kdcache.streams.skeleton import SkeletonStream
from kdcache.streams.video import DenseStream, VideoStream

CLIP = "clip"
"""Id of the one clip."""


class SourceClip:
    """One clip with the methods of ``kdcache.store.Cache`` that inputs use.

    Arrays are those that extraction would cache of the clip, in the views and of the frames that are asked for alone.
    Sources stay open until it is closed, networks beyond that, for the next clip; it serves one thread at a time.

    Args:
        streams: by name.
        spans: what each of them reads; none: ``show`` says it before anything is read.
        device: on which networks run.
    """

    def __init__(self, streams: Sequence[Stream], spans: Sequence[ClipSpan], device: str) -> None:
        self.clips = pd.DataFrame({"clip_id": [CLIP]})
        self.streams = [stream.name for stream in streams]
        self._stream = {stream.name: stream for stream in streams}
        self._device = device
        self._at_end = ExitStack()
        self._sources: dict[tuple[str, str], Source] = {}
        self._nets: dict[str, Backbones] = {}
        self._features: dict[tuple[str, int | None], Array] = {}
        self.path = Path()
        self._span: dict[str, ClipSpan] = {}
        if spans:
            self.show(spans)

    def show(self, spans: Sequence[ClipSpan]) -> None:
        """Be another clip; the sources of the one before are closed."""
        self._close()
        self.path = Path(spans[0].path)
        self._span = dict(zip(self.streams, spans, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._at_end.close()
        self._sources.clear()
        self._features.clear()

    @property
    def end_s(self) -> float:
        """Second of the source at which the clip ends: where the first frame after it begins."""
        name = self.streams[0]
        span = self._span[name]
        stream = self._stream[name]
        if isinstance(stream, SkeletonStream):
            return skeleton_end(open_skeleton(span.path, stream.joint_layout).span(span.start_s, span.stop_s))
        return video_end(self._source(stream), span.start_s, span.stop_s)

    def recipe(self, stream: str) -> Recipe:
        """See ``Cache``."""
        return self._stream[stream].recipe

    def shape(self, stream: str) -> tuple[int, ...]:
        """See ``Cache``."""
        shape = self._stream[stream].shape
        assert shape is not None  # asked of features alone
        return shape

    def dtype(self, stream: str) -> np.dtype[Any]:
        """See ``Cache``."""
        return read_dtype(self.recipe(stream))

    def indexed(self, stream: str) -> NDArray[np.bool_]:
        """The clip has every stream."""
        return np.ones(1, bool)

    def length(self, stream: str, clip_id: str) -> int:
        """See ``Cache``; no frame is decoded for it."""
        dense = self._dense(stream)
        return dense.length(dense.request(self._source(dense).times, self._span[stream]))

    def frames(self, stream: str, clip_ids: Sequence[str]) -> list[NDArray[np.int32]]:
        """See ``Cache``; no frame is decoded for it."""
        one, span = self._stream[stream], self._span[stream]
        if isinstance(one, VideoStream):
            found = one.request(self._source(one).times, span).indices
        else:
            found = one.frames(_whole(one, span))
        return [found for _ in clip_ids]

    def read_frames(self, stream: str, clip_id: str, frames: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """See ``Cache``; JPEG files are made and decoded again."""
        dense = self._dense(stream)
        return self._decoded(dense.compute_some(self._source(dense), self._span[stream], frames, cores(), self._device))

    def read(self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: Any = None) -> Any:
        """See ``Cache``; of one view, only that is computed."""
        one = self._stream[stream]
        if isinstance(one, DenseStream):
            whole = self._decoded(
                one.compute(one.read_clip(self._source(one), self._span[stream], cores(), device=self._device))
            )
            return [whole for _ in clip_ids]
        assert isinstance(one, BackboneStream)
        if (stream, view) not in self._features:
            self._features[stream, view] = self._through(one, view)
        arrays = np.stack([self._features[stream, view]] * len(clip_ids))
        if out is None:
            return arrays
        out[...] = arrays
        return out

    def _through(self, stream: BackboneStream, view: int | None) -> Array:
        """Features [V, …] of all views, or those of one, […]."""
        span = self._span[stream.name]
        if isinstance(stream, VideoStream):
            inputs = stream.compute(stream.read_clip(self._source(stream), span, cores(), device=self._device))
        else:
            inputs = stream.compute(_whole(stream, span))
        if view is not None:
            segments = len(inputs) // self.shape(stream.name)[0]
            inputs = inputs[view * segments : (view + 1) * segments]
        if stream.name not in self._nets:
            self._nets[stream.name] = Backbones([stream], self._device, batch=1)
        features = self._nets[stream.name].features([inputs], stream)[0]
        if isinstance(features, ClipError):
            raise features
        features = features.decoded() if isinstance(features, Quantised) else features
        return features if view is None else np.asarray(features[0])

    def _dense(self, stream: str) -> DenseStream:
        one = self._stream[stream]
        if not isinstance(one, DenseStream):
            raise OptionError(f"Stream {stream!r} has one shape for all clips, no frames.")
        return one

    def _decoded(self, payload: Payload) -> Array:
        return decode_jpeg(payload, self.path) if isinstance(payload, list) else payload

    def _source(self, stream: Stream) -> Source:
        """The opened source of a stream of videos, which those that read it alike share."""
        assert isinstance(stream, VideoStream)
        span = self._span[stream.name]
        key = (str(span.path), stream.decoder)
        if key not in self._sources:
            self._sources[key] = self._at_end.enter_context(open_source(span.path, stream.decoder, span.fps))
        return self._sources[key]


def spans_of(
    streams: Sequence[Stream],
    source: Path,
    skeleton: str | os.PathLike[str] | None,
    start: float | None,
    stop: float | None,
    fps: float | None,
) -> list[ClipSpan]:
    """What each stream reads of a clip; ``OptionError`` where its skeleton file is missing or one too many."""
    skeletons = [s.column == SKELETON for s in streams]
    if skeleton is None and any(skeletons) and not all(skeletons):
        raise OptionError(
            "This run reads videos and skeletons: give the clip's skeleton file as well (--skeleton FILE)."
        )
    if skeleton is not None and not any(skeletons):
        raise OptionError(f"skeleton={skeleton}: this run reads no skeletons; leave it out.")
    named: Mapping[str, Path] = {SKELETON: Path(skeleton)} if skeleton is not None else {}
    first, last = (math.nan if t is None else t for t in (start, stop))
    return [ClipSpan(named.get(s.column, source), first, last, fps) for s in streams]


def video_end(source: Source, start_s: float, stop_s: float) -> float:
    """Second at which the first frame after a span begins; of the last one, at which the source ends."""
    high = clip_range(source.times, start_s, stop_s)[1]
    return float([*source.times, source.info.duration_s][high])


def skeleton_end(clip: Skeleton) -> float:
    """Second of its file at which a clip ends."""
    return (clip.begin + clip.total) / clip.fps


def _whole(stream: Stream, span: ClipSpan) -> Any:
    """A clip as the stream reads it."""
    ((_, clip),) = stream.read([span], [stream], cores())
    if isinstance(clip, ClipError):
        raise clip
    return clip
