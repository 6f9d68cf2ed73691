"""Streams of videos: which frames a clip needs, reading a source once for all of them, flow between frames."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError
from kdcache.motion.stacks import flow_stacks
from kdcache.recipe import ENLARGE, FLOW_ENGINE, SAME_PIXELS, Recipe
from kdcache.sampling import Sampling, clip_range, within
from kdcache.sources import Source, check_decoder, open_source
from kdcache.streams.base import Array, ClipData, ClipSpan, Payload, Stream
from kdcache.streams.flow_memory import AUTO, FLOW_ENGINES, FlowMemory
from kdcache.streams.settings import StreamSettings
from kdcache.views import resize_short_side

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
Part = tuple[int, int, float, float]  # frames low to before high, of the seconds start to before stop

_SKELETON_ONLY = ("centre_joint", "skeleton_fps", "array")
_NO_PAIRS = np.empty((0, 2), np.int32)
SHORT_SIDE = 256  # of whole-clip streams, at most
_ASSUMED_CLIP_S = 10.0  # size estimates only: a clip without a stop, read at …
_ASSUMED_FPS = 30.0  # … this rate
_ASSUMED_ASPECT = 4 / 3


@dataclass(frozen=True)
class FrameRequest:
    """Which source frames one stream takes of a clip."""

    indices: NDArray[np.int32]
    """Sampled frames [T]; with levels [N × T], one after the other."""
    pairs: NDArray[np.int32] = field(default_factory=lambda: _NO_PAIRS)
    """Frame pairs between which flow is computed, [n, 2]."""

    @property
    def used(self) -> NDArray[np.int32]:
        """Every frame, repeated or not."""
        return np.concatenate([self.indices, self.pairs.ravel()])


@dataclass(frozen=True)
class ClipRequest:
    """What all streams take of one clip."""

    number: int
    """Position of the clip among those of its source."""
    span: ClipSpan
    streams: dict[str, FrameRequest]

    @property
    def used(self) -> NDArray[np.int32]:
        """Every frame, repeated or not."""
        return np.concatenate([r.used for r in self.streams.values()])


@dataclass
class ClipFrames(ClipData):
    """A clip of a video, decoded."""

    requests: dict[str, FrameRequest]
    """Stream → what it takes."""
    pixels: dict[tuple[int, int], Frame]
    """(source index, short side) → frame."""
    first: int
    """No clip still to come needs a frame before this one."""
    memory: FlowMemory
    native: int
    """Short side of the source's own frames."""

    def stack(self, stream: VideoStream) -> NDArray[np.uint8]:
        """The sampled frames of a stream, uint8 [T, H, W, 3]."""
        side = stream.side(self.native)
        return np.stack([self.pixels[int(i), side] for i in self.requests[stream.name].indices])

    def gray(self, index: int, short_side: int) -> NDArray[np.uint8]:
        """One frame in grey, uint8 [H, W]."""
        return np.asarray(cv2.cvtColor(self.pixels[index, short_side], cv2.COLOR_RGB2GRAY), np.uint8)

    def flow(self, pairs: NDArray[np.int32], short_side: int, engine: str) -> Array:
        """TV-L1 flow of frame pairs [n, 2], n > 0, by one of ``FLOW_ENGINES``: float32 [n, H, W, 2] in pixels."""
        return self.memory.get(self, pairs, short_side, engine)


@dataclass(frozen=True, kw_only=True)
class VideoStream(Stream):
    """A stream that is computed from frames of a video."""

    sampling: Sampling
    short_side: int
    """Short side in pixels of the frames that it takes."""
    decoder: str
    flow_engine: str | None = None
    """Which of ``FLOW_ENGINES`` computes TV-L1; ``None`` for streams that need none."""

    medium: ClassVar[str] = "videos"

    @functools.cached_property
    def alike(self) -> list[Self]:
        """See ``Stream``: decoders but torchcodec give the same pixels (tests/test_sources_backends.py), and engines
        flow that differs by no more than ``docs/gpu.md`` says, which is what ``auto`` asks for."""
        own = self.decoder, self.flow_engine
        engines = (
            FLOW_ENGINES if self.flow_engine == AUTO else dict.fromkeys((self.flow_engine, self.flow_engine and AUTO))
        )
        decoders = SAME_PIXELS if self.decoder in SAME_PIXELS else (self.decoder,)
        return [replace(self, decoder=d, flow_engine=e) for e in engines for d in decoders if (d, e) != own]

    def takes(self, other: Stream, origin: Callable[[], Mapping[str, Any]]) -> bool:
        """See ``Stream``: of an engine that was asked for by name, what that engine has computed."""
        assert isinstance(other, VideoStream)
        if self.flow_engine in (None, AUTO, other.flow_engine):
            return True
        return bool(origin().get(FLOW_ENGINE, "cpu") == self.flow_engine)  # there was one when it was not noted

    @classmethod
    def check(cls, name: str, settings: StreamSettings) -> None:
        """Refuse what only skeletons have, and progress without levels."""
        for option in _SKELETON_ONLY:
            if (value := getattr(settings, option)) is not None:
                raise OptionError(f"{option} is {value}, but {name} reads videos: leave it out.")
        if settings.rotations:
            raise OptionError(f"rotations is {settings.rotations}, but {name} reads videos: leave it out.")
        if settings.progress and not settings.levels:
            raise OptionError(f"progress is {settings.progress}: say of how many levels, for example levels=10.")
        check_decoder(settings.decoder)

    @classmethod
    def read(
        cls, spans: Sequence[ClipSpan], streams: Sequence[VideoStream], threads: int, device: str = "cpu"
    ) -> Iterator[tuple[int, ClipData | ClipError]]:
        """Decode a source forward once and yield its clips as they become complete, in the order in which they end."""
        with open_source(spans[0].path, streams[0].decoder, spans[0].fps, device) as source:
            requests: list[ClipRequest] = []
            for number, span in enumerate(spans):
                try:
                    found = {s.name: s.request(source.times, span) for s in streams}
                except ClipError as error:
                    yield number, error
                    continue
                requests.append(ClipRequest(number, span, found))
            sides = {s.side(native_side(source)) for s in streams}
            for request, clip in read_requests(source, requests, sides, threads, device):
                yield request.number, clip

    def side(self, native: int) -> int:
        """Short side of its frames, of a source whose own frames have ``native``."""
        return self.short_side

    def request(self, times: NDArray[np.float64], span: ClipSpan) -> FrameRequest:
        """Which frames the stream takes of a clip, of a source with these times.

        Raises:
            ClipError: the span does not lie within the source.
        """
        low, high = clip_range(times, span.start_s, span.stop_s)
        parts = self.parts(times, (low, high, span.start_s, span.stop_s))
        sampled = [within(times, *part, self.sampling) for part in parts]
        pairs = [self.pairs(indices, part[0], part[1]) for indices, part in zip(sampled, parts, strict=True)]
        return FrameRequest(np.concatenate(sampled), np.concatenate(pairs))

    def parts(self, times: NDArray[np.float64], whole: Part) -> list[Part]:
        """What is sampled by itself: the whole clip, or each of its levels."""
        return [whole]

    def pairs(self, indices: NDArray[np.int32], low: int, high: int) -> NDArray[np.int32]:
        """Frame pairs [n, 2] between which flow is needed for the sampled frames of a part."""
        return _NO_PAIRS

    def frames(self, clip: ClipFrames) -> NDArray[np.int32]:
        """The sampled frames."""
        return clip.requests[self.name].indices

    def read_clip(
        self,
        source: Source,
        span: ClipSpan,
        threads: int,
        request: FrameRequest | None = None,
        device: str = "cpu",
    ) -> ClipFrames:
        """One clip of an opened source, or of it only the frames of ``request``.

        Raises:
            ClipError: the span does not lie within the source.
            SourceError: the source is damaged.
        """
        wanted = {self.name: request or self.request(source.times, span)}
        sides = {self.side(native_side(source))}
        ((_, clip),) = read_requests(source, [ClipRequest(0, span, wanted)], sides, threads, device)
        return clip


@dataclass(frozen=True, kw_only=True)
class DenseStream(VideoStream):
    """A stream that keeps whole clips, frame by frame."""

    enlarge: bool = True
    """Whether frames of smaller sources are brought to ``short_side``, too; else they keep their size."""

    names: ClassVar[tuple[str, ...]]
    channels: ClassVar[float]
    """Numbers of a pixel."""

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Exactly the names."""
        return name in cls.names

    @classmethod
    def examples(cls) -> list[str]:
        """The names."""
        return list(cls.names)

    @staticmethod
    def common(settings: StreamSettings) -> dict[str, Any]:
        """The fields that all whole-clip streams take from settings."""
        return {
            "sampling": Sampling(frames=None, fps=settings.fps),
            "short_side": settings.short_side or SHORT_SIDE,
            "enlarge": settings.short_side is not None,
            "decoder": settings.decoder,
        }

    @staticmethod
    def common_in(recipe: Recipe) -> dict[str, Any]:
        """The same from a recipe."""
        return {
            "sampling": Sampling.from_recipe(recipe["sampling"]),
            "short_side": recipe["short_side"],
            "enlarge": recipe.get(ENLARGE, True),
            "decoder": recipe["decoder"],
        }

    def side(self, native: int) -> int:
        """See ``VideoStream``."""
        return self.short_side if self.enlarge else min(self.short_side, native)

    @functools.cached_property
    def enlarging(self) -> Self | None:
        """See ``Stream``."""
        return None if self.enlarge else replace(self, enlarge=True)

    def to_recipe(self) -> Recipe:
        """What all whole-clip streams have; arrays are ragged."""
        recipe: Recipe = {
            "stream": self.name,
            "version": self.version,
            "layout": "ragged",
            "dtype": "uint8",
            "decoder": self.decoder,
            "sampling": self.sampling.to_recipe(),
            "short_side": self.short_side,
        }
        return recipe if self.enlarge else {**recipe, ENLARGE: False}

    def nbytes(self, start_s: float, stop_s: float) -> int:
        """An estimate, for frames of 4:3 that are not smaller than ``short_side``."""
        start = 0.0 if math.isnan(start_s) else start_s
        span = (start + _ASSUMED_CLIP_S if math.isnan(stop_s) else stop_s) - start
        frames = max(1.0, span * (self.sampling.fps or _ASSUMED_FPS))
        pixels = self.short_side * self.short_side * _ASSUMED_ASPECT
        return int(frames * pixels * self.pixel_bytes)

    def length(self, request: FrameRequest) -> int:
        """Frames, fields or maps of a clip."""
        return len(request.indices)

    def some(self, request: FrameRequest, numbers: NDArray[np.integer[Any]]) -> FrameRequest:
        """What the frames, fields or maps ``numbers`` (int [n]) of a clip are computed from."""
        return FrameRequest(request.indices[numbers])

    def compute_some(
        self, source: Source, span: ClipSpan, numbers: NDArray[np.integer[Any]], threads: int, device: str = "cpu"
    ) -> Payload:
        """As ``compute`` of a clip of an opened source, but of its frames, fields or maps ``numbers`` (int [n]) alone.

        Raises:
            ClipError, SourceError: as ``read_clip``.
        """
        request = self.some(self.request(source.times, span), numbers)
        payload: Payload = self.compute(self.read_clip(source, span, threads, request, device))
        return payload

    @functools.cached_property
    def pixel_bytes(self) -> float:
        """Bytes of a pixel."""
        return self.channels * np.dtype(self.recipe["dtype"]).itemsize

    @abstractmethod
    def compute(self, clip: ClipFrames) -> Any:
        """As ``Stream.compute``."""


def flow_pairs(
    indices: NDArray[np.int32], low: int, high: int, *, dense: bool, fps: float | None, stack: int = 1
) -> NDArray[np.int32]:
    """Frame pairs between which a stream's flow is computed; never a frame outside ``[low, high)``.

    Args:
        indices: sampled frames, int32 [T].
        low, high: the frames of the part that may be looked at.
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


def read_requests(
    source: Source, requests: Sequence[ClipRequest], sizes: set[int], threads: int, device: str = "cpu"
) -> Iterator[tuple[ClipRequest, ClipFrames]]:
    """Decode forward once and yield what was asked for, in the order of last frames; none after those is read before.

    Memory holds only the frames that a request still to come needs.

    Args:
        source: opened.
        requests: in any order.
        sizes: short sides in pixels that frames are resized to.
        threads: of flow on the CPU.
        device: of flow, where the engine asked for is ``torch`` or goes by the device.

    Raises:
        SourceError: the source is damaged; what was yielded before is whole.
    """
    if not requests:
        return
    bounds = [(int(r.used.max()), int(r.used.min()), i) for i, r in enumerate(requests)]
    order = sorted(range(len(requests)), key=lambda i: bounds[i][:2])  # stable: clips of one span stay in order
    wanted = np.unique(np.concatenate([r.used for r in requests]))
    firsts = [bounds[i][1] for i in order]
    first_later = np.minimum.accumulate(firsts[::-1])[::-1]  # earliest frame needed from here on
    held: dict[tuple[int, int], Frame] = {}
    memory = FlowMemory(threads, device)
    done = 0
    for index, frame in zip(wanted.tolist(), source.read(wanted), strict=True):
        for short_side in sizes:
            held[index, short_side] = resize_short_side(frame, short_side)
        while done < len(order) and bounds[order[done]][0] <= index:
            request = requests[order[done]]
            last, first, _ = bounds[order[done]]
            pixels = {key: frame for key, frame in held.items() if first <= key[0] <= last}
            origin = _origin(source, request.span.fingerprint)
            later, native = int(first_later[done]), native_side(source)
            yield request, ClipFrames(request.span, origin, request.streams, pixels, later, memory, native)
            done += 1
            earliest = first_later[done] if done < len(order) else index + 1
            for key in [k for k in held if k[0] < earliest]:
                del held[key]


def native_side(source: Source) -> int:
    """Short side in pixels of a source's own frames, as displayed."""
    return min(source.info.width, source.info.height)


def _origin(source: Source, fingerprint: str) -> dict[str, Any]:
    info = source.info
    return {
        "fingerprint": fingerprint,
        "decoder": f"{info.backend} {info.backend_version}",
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "frames": len(source.times),
    }
