"""Pixels through PyAV: any codec, every frame checked against the timeline, seeks across gaps."""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from kdcache.errors import SourceError
from kdcache.sources.timeline import BOUNDS, Key, VideoTimeline, damaged, open_container

if TYPE_CHECKING:
    from kdcache.sources.base import Frame

# Frame threads only: with slice threads, which are PyAV's default, H.264 frames that were patched up after damage lose
# the flag that says so.
THREADS = 2
# Codecs whose decoders patch up some damage without a flag unless told to stop at it. Not H.264 and HEVC, which would
# then also stop at malformed side information that leaves the picture whole.
STRICT = {"mpeg1video", "mpeg2video", "mpeg4"}
JUMP = 24  # seek when it saves decoding more frames than this: reopening the pipeline costs about as much
_of_parents: list[Any] = []  # containers opened before a fork: freeing one waits for threads that are not in the child


class PyAVDecoder:
    """Decodes frames of a ``VideoTimeline`` by index, forward."""

    name = "pyav"
    version = av.__version__

    def __init__(self, timeline: VideoTimeline) -> None:
        self._timeline = timeline
        self._container: Any = None
        self._decoded: Iterator[av.VideoFrame] = iter(())
        self._process = os.getpid()
        self._next = 0  # index of the frame that comes out next
        self._settled = False  # whether a frame has come out since the last start or seek
        self._keys = list(timeline.keys)
        self._starts = [key.index for key in timeline.keys]
        self._place = {key.pts: key.index for key in timeline.keys}
        self._reformatter = VideoReformatter()  # one for all frames: building it costs more than a small frame's use

    def frames(self, indices: list[int]) -> Iterator[Frame]:
        """The frames at ascending ``indices``; ``SourceError`` where the file is damaged."""
        for index in indices:
            frame = self._reach(index)
            yield self._rgb(frame)
            del frame  # a kept VideoFrame holds a decoder's buffer

    def close(self) -> None:
        """Close the file and its decoder."""
        if self._container is not None:
            if os.getpid() == self._process:
                self._decoded = iter(())
                self._container.close()
            else:
                _of_parents.append((self._container, self._decoded))
            self._container = None

    def _reach(self, index: int) -> av.VideoFrame:
        if self._container is None or index < self._next or os.getpid() != self._process:
            self._start()
        key = self._key_before(index)
        if key is None or key.index - self._next <= JUMP:
            return self._forward(index)
        try:
            self._seek(key)
            return self._forward(index)
        except SourceError:  # the key frame may be no clean start: go through everything before it
            self._keys, self._starts = [], []
            self._start()
            return self._forward(index)

    def _key_before(self, index: int) -> Key | None:
        at = bisect_right(self._starts, index) - 1
        return self._keys[at] if at >= 0 else None

    def _start(self) -> None:
        self.close()
        self._process = os.getpid()
        self._container = open_container(self._timeline.path)
        stream = self._container.streams[self._timeline.stream]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "FRAME", THREADS
        strict = {"err_detect": "explode"} if self._timeline.codec in STRICT else {}
        stream.codec_context.options = {**BOUNDS, **strict}
        self._decoded = self._container.decode(stream)
        self._next, self._settled = 0, False

    def _seek(self, key: Key) -> None:
        """Go to a key frame, or to one before it; which one is read from the packet that is found there."""
        stream = self._container.streams[self._timeline.stream]
        try:
            self._container.seek(key.seek, stream=stream, backward=True)
            packets = self._container.demux(stream)
            first = next(packets)
        except (av.FFmpegError, StopIteration) as error:
            raise damaged(self._timeline.path, f"frame {key.index} cannot be found") from error
        found = self._place.get(first.pts)
        if found is None or found > key.index:
            raise damaged(self._timeline.path, f"frame {key.index} is not where its index says")
        self._decoded = (f for p in itertools.chain([first], packets) for f in p.decode())
        self._next, self._settled = found, False

    def _forward(self, index: int) -> av.VideoFrame:
        """Decode up to frame ``index``, checking each frame on the way."""
        timeline = self._timeline
        while True:
            try:
                frame = next(self._decoded, None)
            except MemoryError:  # PyAV's is an FFmpegError, too, and no damage
                raise
            except av.FFmpegError as error:
                self._container.close()
                self._container = None
                raise damaged(timeline.path, f"{self._where()} cannot be decoded ({error.strerror})") from error
            if frame is None:
                raise damaged(timeline.path, f"decoding ends before {self._where()}")
            if not self._settled and self._early(frame):
                continue
            self._check(frame)
            self._settled = True
            self._next += 1
            if self._next > index:
                return frame

    def _early(self, frame: av.VideoFrame) -> bool:
        """Whether a frame is shown before the key frame that decoding started from, and so not to be trusted."""
        pts = self._timeline.pts
        return pts is not None and frame.pts is not None and frame.pts < int(pts[self._next])

    def _check(self, frame: av.VideoFrame) -> None:
        timeline = self._timeline
        if frame.is_corrupt:
            raise damaged(timeline.path, f"{self._where()} is corrupt")
        if timeline.pts is not None and frame.pts != timeline.pts[self._next]:
            raise damaged(timeline.path, f"{self._where()} has time stamp {frame.pts}, not {timeline.pts[self._next]}")
        if (frame.width, frame.height) != (timeline.width, timeline.height):
            raise SourceError(
                f"{timeline.path}: {self._where()} is {frame.width}×{frame.height}, the first "
                f"{timeline.width}×{timeline.height}; re-encode it to one size."
            )

    def _where(self) -> str:
        return f"frame {self._next} of {len(self._timeline.times)}"

    def _rgb(self, frame: av.VideoFrame) -> Frame:
        plane: Any = self._reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
        rows: Frame = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        picture = rows[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        if self._timeline.rotation:
            return np.ascontiguousarray(np.rot90(picture, -self._timeline.rotation // 90))
        return picture.copy()
