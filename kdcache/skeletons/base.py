"""A sequence of joints, whatever file it came from.

Joints are as in the file: uncentred, in the sensor's units (metres for Kinect). A joint or body that was not seen is
at (0, 0, 0), as in the published files; ``kdcache.skeletons.image`` says what happens to it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, SourceError
from kdcache.sampling import clip_range

MOST_BYTES = 2**28
"""Of a file of joints, or of an array in one; two bodies of 25 joints in float32 fill it in four hours."""

Joints = NDArray[np.float32]  # [T, bodies × joints, 3]


class Choose(Protocol):
    """Chooses among the bodies of a file that holds more than two."""

    def __call__(self, stop: int) -> tuple[Joints, NDArray[np.int32]]:
        """The chosen bodies and their frames when the clip's first ``stop`` frames were seen."""
        ...

    def span(self, low: int, high: int) -> Choose:
        """The choice for a clip from frame ``low`` to before ``high``; it depends on no other frames."""
        ...


@dataclass(frozen=True)
class Skeleton:
    """One sequence of joints: a file, or a clip cut from it by ``span``.

    Attributes:
        joints: float32 [T, bodies × per_body, 3]; zeros where nothing was seen.
        per_body: joints of one body.
        centre: index of the joint in the middle of a body, whose first position becomes the origin of images.
        frames: int32 [T], the clip's frame behind each row; frames in which NTU files hold no body have no row.
        total: frames in the clip.
        fps: frame rate of the recording [general knowledge, in no file; of arrays as stated]. Frame k is shown from
            k / fps seconds on.
        kind: ``msraction3d``, ``jhmdb``, ``ntu`` or ``array``.
        choose: for files with spare bodies, which are chosen when only the first so many frames were seen.
        begin: the file's frame at which the clip begins.
    """

    joints: Joints
    per_body: int
    centre: int
    frames: NDArray[np.int32]
    total: int
    fps: float
    kind: str
    choose: Choose | None = None
    begin: int = 0

    @property
    def bodies(self) -> int:
        """1 or 2; of arrays any number."""
        return int(self.joints.shape[1]) // self.per_body

    @property
    def planar(self) -> bool:
        """Whether the joints lie in the picture's plane: z is 0 everywhere, as in every JHMDB clip."""
        return not self.joints[..., 2].any()

    @property
    def seen(self) -> NDArray[np.bool_]:
        """bool [T]: frames in which any joint is away from (0, 0, 0)."""
        return np.asarray(self.joints.any(axis=(1, 2)))

    def observed(self, stop: int) -> Skeleton:
        """The sequence as the clip's first ``stop`` frames show it; NTU's actors are chosen from those alone."""
        if self.choose is not None:
            joints, frames = self.choose(stop)
        else:
            rows = int(np.searchsorted(self.frames, stop))
            joints, frames = self.joints[:rows], self.frames[:rows]
        return replace(self, joints=joints, frames=frames)

    def span(self, start_s: float, stop_s: float) -> Skeleton:
        """The clip ``[start_s, stop_s)``, seconds from the start of this one; NaN stands for its start or end.

        Its frames count from 0, and nothing in it depends on frames outside the span.

        Raises:
            ClipError: a span outside the sequence, a NaN or infinite joint in it, or nothing but zeros.
        """
        low, high = clip_range(np.arange(self.total) / self.fps, start_s, stop_s)
        clip = replace(self, total=high - low, begin=self.begin + low)
        if self.choose is not None:
            choose = self.choose.span(low, high)
            joints, frames = choose(high - low)
            clip = replace(clip, joints=joints, frames=frames, choose=choose)
        else:
            first, last = np.searchsorted(self.frames, [low, high])
            clip = replace(clip, joints=self.joints[first:last], frames=self.frames[first:last] - np.int32(low))
        if (problem := clip.problem()) is not None:
            raise ClipError(f"Frames {clip.begin} to {clip.begin + clip.total - 1}: {problem}")
        return clip

    def problem(self) -> str | None:
        """What makes the sequence useless, and what to do; ``None`` for a good one."""
        finite = np.isfinite(self.joints).all(axis=(1, 2))
        if not finite.all():
            frame = self.begin + int(self.frames[int(np.argmin(finite))])
            return f"frame {frame} holds a NaN or infinite joint; copy the file again."
        if not self.joints.any():
            return f"all joints are zero in all {self.total} frames; take it out of the manifest."
        return None


def openable(path: str | os.PathLike[str]) -> None:
    """``SourceError`` where a path is not that of a plain file of a size that files of joints have."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    if not stat.S_ISREG(state.st_mode):
        raise SourceError(f"{path}: neither a file nor a folder; give a file of joints.")
    if state.st_size > MOST_BYTES:
        raise SourceError(
            f"{path}: {state.st_size:,} bytes, and files of joints have up to {MOST_BYTES:,}; cut it into clips."
        )


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a skeleton file; ``SourceError`` when it is missing, empty or not text."""
    openable(path)
    try:
        text = Path(path).read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file (byte {error.start}); copy it again.") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    if not text.strip():
        raise SourceError(f"{path}: the file is empty; copy it again or take it out of the manifest.")
    return text
