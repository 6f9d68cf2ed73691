"""What every source of frames offers: its properties, a time for each frame, and frames in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

from kdcache.errors import SourceError
from kdcache.frame_rate import is_rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frame: TypeAlias = NDArray[np.uint8]  # [H, W, 3] RGB
    Indices: TypeAlias = Sequence[int] | NDArray[np.integer]


def check_rate(path: str, fps: float) -> None:
    """Refuse a frame rate that can be none, as of a damaged header; ``SourceError``."""
    if not is_rate(fps):
        raise SourceError(f"{path}: {fps:g} is no frame rate; give, or store, frames per second such as 25 or 29.97.")


@dataclass(frozen=True)
class SourceInfo:
    """Properties of an opened source; ``backend`` is what decodes its pixels at this moment.

    Attributes:
        path: absolute path.
        width, height: pixels of a frame as displayed, after rotation.
        fps: average frame rate over the whole source.
        duration_s: end of the last frame in seconds as ``Source.times`` counts them.
        codec: FFmpeg's name of the codec, or the kind of the image files.
        container: FFmpeg's name of the container, ``folder`` or ``tar``.
        rotation: degrees by which stored frames were turned clockwise for display (0, 90, 180 or 270).
        backend: ``decord``, ``pyav``, ``torchcodec``, ``frames`` or ``tar``.
        backend_version: version of the decoding library.
    """

    path: str
    width: int
    height: int
    fps: float
    duration_s: float
    codec: str
    container: str
    rotation: int
    backend: str
    backend_version: str


class Source(Protocol):
    """A video, or a folder or tar of frames, read forward.

    Attributes:
        info: properties.
        times: float64 [N], presentation time in seconds of every frame in display order, strictly increasing.
    """

    info: SourceInfo
    times: NDArray[np.float64]

    def read(self, indices: Indices) -> Iterator[Frame]:
        """Frames ``indices`` (ascending, unique) as uint8 [H, W, 3] RGB arrays that the caller owns.

        One call decodes each stretch once. A later call may start before the end of an earlier one; that decodes
        again. One thread at a time.

        Raises:
            ValueError: indices not ascending, not unique, or outside the source.
            SourceError: damage, met at the frame where it shows; frames yielded before it are right.
        """
        ...

    def close(self) -> None:
        """Release files and decoders; closing twice is fine."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ascending(indices: Indices, count: int, path: str) -> list[int]:
    """``indices`` as a list, checked to be ascending, unique and within ``count`` frames (else ``ValueError``)."""
    checked = [int(i) for i in indices]
    if any(a >= b for a, b in itertools.pairwise(checked)):
        raise ValueError(f"{path}: frame indices must ascend without repeats; sort them first")
    if checked and not 0 <= checked[0] <= checked[-1] < count:
        raise ValueError(f"{path}: frames {checked[0]} to {checked[-1]} were asked for; it has 0 to {count - 1}")
    return checked
