"""Pixels through torchcodec, on a GPU where the run has one: within ``MOST_APART`` of PyAV's, to the frame.

A GPU's decoder computes colours by itself, tells of no damage, and torchcodec counts frames as the container does. So
it gets plain files with time stamps; its first frame is held against PyAV's, and every frame must carry its time. PyAV
reads the files that fail this, and goes on where torchcodec stops: it knows what is damaged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.device_errors import device_errors
from kdcache.errors import DeviceError, OptionError
from kdcache.log import logger
from kdcache.sources._pyav import PyAVDecoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdcache.sources.base import Frame
    from kdcache.sources.timeline import VideoTimeline

MOST_APART = 3  # grey levels by which any value of a frame may differ from PyAV's; torchcodec tests its CUDA for them
TOGETHER = 64 * 2**20  # bytes of the frames that are asked for at once
TICK = 5e-6  # seconds: less than half a tick of any usual clock (1/90,000)
REMEDY = "use decoder=auto, or fewer --workers"


def require_torchcodec() -> Any:
    """The module ``torchcodec.decoders``; ``OptionError`` where it cannot be loaded."""
    try:
        import torchcodec.decoders
    except (ImportError, RuntimeError, OSError) as error:  # the last two: FFmpeg is not found, or torch is another
        raise OptionError(
            f"decoder is torchcodec, which cannot be loaded ({_reason(error)}): pip install 'kdcache[torchcodec]' and "
            "FFmpeg's libraries, in a version that it supports, or leave decoder out."
        ) from error
    return torchcodec.decoders


def _reason(error: BaseException) -> str:
    """The first line of an error, without the place in torchcodec's sources."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\w+, \S+:[0-9]+, ", "", first)


def torchcodec_decoder(timeline: VideoTimeline, device: str) -> TorchcodecDecoder | None:
    """The decoder of a file, or ``None`` for one that PyAV is to read."""
    decoder = TorchcodecDecoder(timeline, device)
    reason = "no time stamps" if timeline.pts is None else next(iter(timeline.quirks), None) or decoder.contradiction()
    if reason is None:
        return decoder
    logger.debug("%s: PyAV reads it in place of torchcodec: %s", timeline.path, reason)
    decoder.close()
    return None


class TorchcodecDecoder:
    """Decodes frames of a ``VideoTimeline`` by index."""

    name = "torchcodec"

    def __init__(self, timeline: VideoTimeline, device: str) -> None:
        import torchcodec

        self.version = f"{torchcodec.__version__} on {device.partition(':')[0]}"
        self._timeline, self._device = timeline, device
        self._reader: Any = None
        self._process = os.getpid()
        self._otherwise = PyAVDecoder(timeline)
        self._stopped = False
        self._at_once = max(1, TOGETHER // (timeline.width * timeline.height * 3))

    def frames(self, indices: list[int]) -> Iterator[Frame]:
        """The frames at ascending ``indices``; ``SourceError`` where PyAV says that the file is damaged.

        Raises:
            DeviceError: the GPU has no memory left, or is broken.
        """
        for low in range(0, len(indices), self._at_once):
            some = indices[low : low + self._at_once]
            pictures = None if self._stopped else self._read(some)
            yield from self._otherwise.frames(some) if pictures is None else (p.copy() for p in pictures)

    def close(self) -> None:
        """Release both readers."""
        self._reader = None
        self._otherwise.close()

    def contradiction(self) -> str | None:
        """In what it differs from PyAV by more than it may: the number of frames, or the first of them."""
        pictures = self._read([0])
        if pictures is None:
            return "its first frame cannot be decoded"
        (expected,) = self._otherwise.frames([0])
        self._otherwise.close()
        if pictures[0].shape != expected.shape:
            return f"frames of {pictures[0].shape} in place of {expected.shape}"
        apart = int(np.abs(pictures[0].astype(np.int16) - expected).max())
        return f"its first frame is {apart} grey levels from PyAV's" if apart > MOST_APART else None

    def _read(self, indices: list[int]) -> NDArray[np.uint8] | None:
        """Frames [n, H, W, 3], or ``None`` for good where it stops."""
        try:
            with device_errors(self._device, f"{self._timeline.path}: a decoder", REMEDY):
                pictures = self._decode(indices)
        except DeviceError:  # is a RuntimeError
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            logger.info(
                "%s: torchcodec stops in frames %d to %d (%s); PyAV goes on there.",
                self._timeline.path, indices[0], indices[-1], _reason(error),
            )  # fmt: skip
            self._stopped, self._reader, pictures = True, None, None
        return pictures

    def _decode(self, indices: list[int]) -> NDArray[np.uint8]:
        times = self._timeline.times
        if self._reader is None or self._process != os.getpid():
            self._process = os.getpid()
            self._reader = require_torchcodec().VideoDecoder(
                self._timeline.path, stream_index=self._timeline.stream, dimension_order="NHWC", device=self._device
            )
            if len(self._reader) != len(times):
                raise ValueError(f"it counts {len(self._reader)} frames, not {len(times)}")
            self._begins = float(self._reader.get_frames_at([0]).pts_seconds[0])
        batch = self._reader.get_frames_at(indices)
        late = np.abs(batch.pts_seconds.numpy() - self._begins - (times[indices] - times[0])).max()
        if not late < TICK:
            raise ValueError(f"a frame is {late:.4f} s from where it belongs")
        pictures: NDArray[np.uint8] = batch.data.cpu().numpy()
        return pictures
