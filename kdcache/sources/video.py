"""A video file as a source: its timeline, the backend that suits the file, and PyAV as the fallback of decord."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from kdcache.errors import SourceError
from kdcache.sources._decord import DecoderFallback, DecordDecoder, unsupported_reason
from kdcache.sources._pyav import PyAVDecoder
from kdcache.sources.base import Source, SourceInfo, ascending
from kdcache.sources.timeline import read_timeline

if TYPE_CHECKING:
    from kdcache.sources.base import Frame, Indices


class VideoSource(Source):
    """A video, decoded forward by decord or PyAV.

    ``info.backend`` changes to ``pyav`` when decord met an error or a gap across which PyAV can seek;
    ``fallback_reason`` then says why. The pixels do not depend on it.
    """

    def __init__(self, path: str, decoder: str = "auto") -> None:
        """Read the timeline of ``path`` (absolute) and choose its decoder (``auto``, ``decord`` or ``pyav``)."""
        timeline = read_timeline(path)
        unsupported = unsupported_reason(timeline) if decoder != "pyav" else "PyAV was asked for"
        if decoder == "decord" and unsupported:
            raise SourceError(
                f"{path}: decord does not read this file right ({unsupported}); use decoder=auto or pyav."
            )
        self._timeline = timeline
        self._forced = decoder == "decord"
        self._decoder: DecordDecoder | PyAVDecoder = (
            PyAVDecoder(timeline) if unsupported else DecordDecoder(timeline, skips=not self._forced)
        )
        self.times = timeline.times
        self.fallback_reason: str | None = None
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
        return self._read(ascending(indices, len(self.times), self.info.path))

    def _read(self, indices: list[int]) -> Iterator[Frame]:
        done = 0
        while done < len(indices):
            try:
                for frame in self._decoder.frames(indices[done:]):
                    done += 1
                    yield frame
            except DecoderFallback as fallback:
                if self._forced:
                    raise SourceError(
                        f"{self.info.path}: decord stops before frame {indices[done]} ({fallback}); use decoder=auto."
                    ) from fallback
                self._fall_back(str(fallback))

    def _fall_back(self, reason: str) -> None:
        self._decoder.close()
        self._decoder = PyAVDecoder(self._timeline)
        self.fallback_reason = reason
        self.info = replace(self.info, backend=self._decoder.name, backend_version=self._decoder.version)

    def close(self) -> None:
        """See ``Source.close``."""
        self._decoder.close()
