"""A video file as a source: its timeline, and the decoder that was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdcache.sources._decord import DecordDecoder
from kdcache.sources._pyav import PyAVDecoder
from kdcache.sources._torchcodec import TorchcodecDecoder, torchcodec_decoder
from kdcache.sources.base import Source, SourceInfo, ascending, check_rate
from kdcache.sources.timeline import read_timeline

if TYPE_CHECKING:
    from kdcache.sources.base import Frame, Indices


class VideoSource(Source):
    """A video, decoded forward by PyAV or decord, whose pixels are equal, or by torchcodec."""

    def __init__(self, path: str, decoder: str = "auto", device: str = "cpu") -> None:
        """Read the timeline of ``path`` (absolute) and open its decoder; ``device`` is torchcodec's.

        ``auto`` is PyAV, which reads every file and is the faster on all that decord reads (benchmarks/decoders.py).
        """
        timeline = read_timeline(path)
        check_rate(path, timeline.fps)
        self._decoder: DecordDecoder | PyAVDecoder | TorchcodecDecoder
        if decoder == "decord":
            self._decoder = DecordDecoder(timeline)
        else:
            on_device = torchcodec_decoder(timeline, device) if decoder == "torchcodec" else None
            self._decoder = on_device or PyAVDecoder(timeline)
        self.times = timeline.times
        upright = timeline.rotation % 180 == 0
        self.info = SourceInfo(
            path=path,
            width=timeline.width if upright else timeline.height,
            height=timeline.height if upright else timeline.width,
            fps=timeline.fps,
            duration_s=timeline.duration_s,
            codec=timeline.codec,
            container=timeline.container,
            rotation=timeline.rotation,
            backend=self._decoder.name,
            backend_version=self._decoder.version,
        )

    def read(self, indices: Indices) -> Iterator[Frame]:
        """See ``Source.read``."""
        return self._decoder.frames(ascending(indices, len(self.times), self.info.path))

    def close(self) -> None:
        """See ``Source.close``."""
        self._decoder.close()
