"""A video file as a source: the axis, the backend that suits the file, and PyAV where that one has doubts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from kdcache.errors import SourceError
from kdcache.sources._decord import DecordDecoder, Doubt, why_not
from kdcache.sources._pyav import PyAVDecoder
from kdcache.sources.base import Source, SourceInfo, ascending
from kdcache.sources.timeline import read_axis

if TYPE_CHECKING:
    from kdcache.sources.base import Frame, Indices


class VideoSource(Source):
    """A video, decoded forward by decord or PyAV.

    ``info.backend`` changes to ``pyav`` when decord met an error or a gap across which PyAV can seek; ``handed_over``
    then says why. The pixels do not depend on it.
    """

    def __init__(self, path: str, decoder: str = "auto") -> None:
        """Read the axis of the file at ``path`` (absolute); choose its decoder (``auto``, ``decord`` or ``pyav``)."""
        axis = read_axis(path)
        unfit = why_not(axis) if decoder != "pyav" else "PyAV was asked for"
        if decoder == "decord" and unfit:
            raise SourceError(f"{path}: decord does not read this file right ({unfit}); use --decoder auto or pyav.")
        self._axis = axis
        self._forced = decoder == "decord"
        self._decoder: DecordDecoder | PyAVDecoder = (
            PyAVDecoder(axis) if unfit else DecordDecoder(axis, skips=not self._forced)
        )
        self.times = axis.times
        self.handed_over: str | None = None
        upright = axis.rotation % 180 == 0
        self.info = SourceInfo(
            path=path,
            width=axis.width if upright else axis.height,
            height=axis.height if upright else axis.width,
            fps=axis.fps,
            duration_s=axis.duration_s,
            codec=axis.codec,
            container=axis.container,
            rotation=axis.rotation,
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
            except Doubt as doubt:
                if self._forced:
                    raise SourceError(
                        f"{self.info.path}: decord stops before frame {indices[done]} ({doubt}); use --decoder auto."
                    ) from doubt
                self._hand_over(str(doubt))

    def _hand_over(self, reason: str) -> None:
        self._decoder.close()
        self._decoder = PyAVDecoder(self._axis)
        self.handed_over = reason
        self.info = replace(self.info, backend=self._decoder.name, backend_version=self._decoder.version)

    def close(self) -> None:
        """See ``Source.close``."""
        self._decoder.close()
