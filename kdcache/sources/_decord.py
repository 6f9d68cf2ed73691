"""Pixels through decord, on one thread: for plain files, in order, and only while its FFmpeg logs no warning.

decord conceals damage without an error, and returns wrong frames after a seek (it counts frames by time stamp and key
frames in decoding order). So it gets files without quirks, reads them from the first frame on, and the log of its
FFmpeg is counted: the first warning ends the reading.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdcache.errors import SourceError
from kdcache.sources._ffmpeg_log import ffmpeg_log
from kdcache.sources.timeline import VideoTimeline

if TYPE_CHECKING:
    from kdcache.sources.base import Frame

# What decord 0.6 reads to the same pixels as PyAV (tests/test_sources_backends.py holds them to it).
# Only codecs whose standard fixes every bit of the result: MPEG-1, -2 and -4 Part 2 leave the rounding of the inverse
# transform open, and the two libraries' FFmpegs differ there by 1 or 2 grey levels in some frames.
READS = {container: {"h264", "hevc"} for container in ("mov", "matroska", "avi")}
_of_parents: list[Any] = []  # readers opened before a fork: freeing one joins a thread that is not in the child


def unsupported_reason(timeline: VideoTimeline) -> str | None:
    """Why decord does not read a file, or ``None``; a function of the file and of whether decord is installed."""
    if importlib.util.find_spec("decord") is None:
        return "decord is not installed"
    if timeline.codec not in READS.get(timeline.container, ()):
        return f"{timeline.codec} in {timeline.container}"
    if timeline.quirks:
        return timeline.quirks[0]
    if _padded(timeline.width):
        return f"{timeline.width} pixels wide"
    if ffmpeg_log() is None:
        return "this build of decord does not pass on its errors"
    return None


def _padded(width: int) -> bool:
    """Whether decord 0.6 may take the padding of a row for channels: it divides the length of a row by the width.

    Found by decoding every even width from 16 to 138; of 40 pixels alone it is right where this says that it is not.
    """
    return width % 8 == 0 and -(-width // 32) * 32 * 3 // width != 3


class DecordDecoder:
    """Decodes frames of a ``VideoTimeline`` by index, forward.

    Raises ``SourceError`` for a file that it does not read right.
    """

    name = "decord"

    def __init__(self, timeline: VideoTimeline) -> None:
        if (reason := unsupported_reason(timeline)) is not None:
            raise SourceError(
                f"{timeline.path}: decord does not read this file right ({reason}); use decoder=auto or pyav."
            )
        self._timeline = timeline
        self._reader: Any = None
        self._process = os.getpid()
        self._next = 0
        self._before = 0  # warnings logged before this reader's first frame
        self.version = _version()

    def frames(self, indices: list[int]) -> Iterator[Frame]:
        """The frames at ascending ``indices``; ``SourceError`` at an error, or a warning of its decoder."""
        for index in indices:
            if self._reader is None or index < self._next or os.getpid() != self._process:
                self._start()
            yield self._forward(index)

    def close(self) -> None:
        """Release the reader and its thread."""
        if self._reader is not None and os.getpid() != self._process:
            _of_parents.append(self._reader)
        self._reader = None

    def _start(self) -> None:
        import decord

        self.close()
        self._process = os.getpid()
        try:
            # One thread: extraction runs in several processes. The least tolerance to be had makes decord raise where
            # it would repeat the nearest frame instead of a missing one.
            self._reader = decord.VideoReader(self._timeline.path, num_threads=1, fault_tol="0.000001")
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            raise self._stopped(f"it does not open: {_first_line(error)}") from error
        self._next, self._before = 0, _warnings()
        if len(self._reader) != len(self._timeline.times):
            raise self._stopped(f"it counts {len(self._reader)} frames, not {len(self._timeline.times)}")

    def _forward(self, index: int) -> Frame:
        import decord

        while True:
            try:
                picture = self._reader.next()
            except (decord.DECORDError, decord.DECORDLimitReachedError, StopIteration) as error:
                raise self._stopped(_first_line(error)) from error
            if _warnings() > self._before:
                log = ffmpeg_log()
                raise self._stopped(log.last if log else "")
            self._next += 1
            if self._next > index:
                frame: Frame = picture.asnumpy()
                return frame

    def _stopped(self, reason: str) -> SourceError:
        place = f"{self._timeline.path}: decord stops before frame {self._next}"
        return SourceError(f"{place} ({reason}); use decoder=auto, which checks more.")


def _warnings() -> int:
    log = ffmpeg_log()
    return log.count if log else 0


def _version() -> str:
    import decord

    return str(decord.__version__)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
