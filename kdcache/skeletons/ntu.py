"""NTU RGB+D ``.skeleton`` text, and the choice of at most two actors among the bodies that Kinect reports.

The choice follows the preprocessing published with VA-CNN (microsoft/View-Adaptive-Neural-Networks-for-Skeleton-based-
Human-Action-Recognition, ``data/ntu``), whose thresholds and quirks are kept because its results depend on them:

- Frames without a body are dropped.
- A body that vanishes and comes back is stored without its gap: what follows the gap moves earlier.
- With more than one body: those seen in 11 frames or fewer go; then those of which 69.754 % of the frames or more are
  wider than 0.8 × their height (a chair, a shelf), unless it is the last one left.
- The body that moves most (variance of its joints, in its plausible frames) is actor 1. Each further body, in order of
  motion, joins the first actor with whom it shares no time; bodies that fit nowhere go.
- Then frames in which neither actor is seen are dropped.

That code also defines limits of motion (0.089925 to 2), but returns before it applies them; so does this. Where it
stops with an error, this goes on: when every body is too short, the longest stays; a body with a NaN joint counts as
not seen in that frame [both reconstructed].
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import SourceError
from kdcache.skeletons.base import Joints, Skeleton, read_text

JOINTS, MID_SPINE, FPS = 25, 1, 30.0
BODY_FIELDS, JOINT_FIELDS = 10, 12
SHORTEST = 11  # a body seen in this many frames or fewer is noise
WIDEST, NOISY = 0.8, 0.69754  # width / height of a plausible frame; share of implausible frames that discards a body


@dataclass(frozen=True)
class Track:
    """One body: joints float32 [n, 25, 3] in the frames (int32 [n], counted among frames with a body) that show it."""

    frames: NDArray[np.int32]
    joints: Joints

    def until(self, stop: int) -> Track:
        """The track as far as frame ``stop``."""
        n = int(np.searchsorted(self.frames, stop))
        return Track(self.frames[:n], self.joints[:n])

    def between(self, start: int, stop: int) -> Track:
        """The track from frame ``start`` to before ``stop``, its frames counted from ``start``."""
        a, b = np.searchsorted(self.frames, [start, stop])
        return Track(self.frames[a:b] - np.int32(start), self.joints[a:b])

    @property
    def span(self) -> tuple[int, int]:
        """First and last row, both included, once gaps are closed."""
        start = int(self.frames[0])
        return start, start + len(self.frames) - 1


class _Lines:
    """The lines of a file, read forward; every error names the line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.lines, self.at = path, read_text(path).splitlines(), 0

    def take(self, count: int, fields: int) -> NDArray[np.float32]:
        """The next ``count`` lines of ``fields`` numbers each, float32 [count, fields]."""
        block = self.lines[self.at : self.at + count]
        self.at += len(block)
        if len(block) < count:
            raise SourceError(f"{self.path}: ends at line {len(self.lines)} in the middle of a frame; copy it again.")
        try:
            return np.array(" ".join(block).split(), np.float32).reshape(count, fields)
        except ValueError:
            lines = f"line {self.at}" if count == 1 else f"lines {self.at - count + 1} to {self.at}"
            raise SourceError(f"{self.path}: {lines}: expected {fields} number(s) a line; copy it again.") from None

    def count(self, what: str) -> int:
        """The next line, a whole number."""
        value = float(self.take(1, 1)[0, 0])
        if not value.is_integer() or value < 0:
            raise SourceError(f"{self.path}: line {self.at}: {value:g} is no number of {what}; copy it again.")
        return int(value)

    def body(self) -> str:
        """The identity at the start of a body's line (too long a number for float32)."""
        fields = self.lines[self.at].split() if self.at < len(self.lines) else []
        self.take(1, BODY_FIELDS)
        return fields[0]


def read_ntu(path: str | os.PathLike[str]) -> Skeleton:
    """One NTU RGB+D clip with its one or two actors: joints float32 [T, 25 or 50, 3], metres.

    Raises ``SourceError``: missing, empty, cut off, malformed, or without a body in any frame (the fate of the 302
    samples that the data set lists as missing).
    """
    lines = _Lines(path)
    total = lines.count("frames")
    visible: list[int] = []
    tracks: dict[str, tuple[list[int], list[Joints]]] = {}
    for frame in range(total):
        bodies: dict[str, Joints] = {}
        for _ in range(lines.count("bodies")):
            identity = lines.body()
            if (number := lines.count("joints")) != JOINTS:
                raise SourceError(f"{path}: line {lines.at}: a body has {number} joints, not {JOINTS}; copy it again.")
            points = lines.take(JOINTS, JOINT_FIELDS)[:, :3]
            if identity in bodies:
                raise SourceError(f"{path}: frame {frame} lists body {identity} twice; copy it again.")
            bodies[identity] = points
        bodies = {name: points for name, points in bodies.items() if np.isfinite(points).all()}
        for name, points in bodies.items():
            seen_in, seen_at = tracks.setdefault(name, ([], []))
            seen_in.append(len(visible))
            seen_at.append(points)
        if bodies:
            visible.append(frame)
    if not visible:
        raise SourceError(f"{path}: no body in any of its {total} frames; take it out of the manifest.")
    found = tuple(Track(np.array(f, np.int32), np.stack(j)) for f, j in tracks.values())
    choose = Actors(found, np.array(visible, np.int32))
    joints, frames = choose(total)
    if not joints.any():
        raise SourceError(f"{path}: all joints are zero in all {total} frames; take it out of the manifest.")
    return Skeleton(joints, JOINTS, MID_SPINE, frames, total, FPS, "ntu", choose)


@dataclass(frozen=True)
class Actors:
    """Chooses the actors of one file from as much of it as was seen: its bodies and its frames with a body."""

    tracks: tuple[Track, ...]
    shown: NDArray[np.int32]

    def __call__(self, stop: int) -> tuple[Joints, NDArray[np.int32]]:
        """``choose_actors`` on the file's first ``stop`` frames."""
        rows = int(np.searchsorted(self.shown, stop))
        return choose_actors([t.until(rows) for t in self.tracks if t.frames[0] < rows], self.shown[:rows])

    def span(self, low: int, high: int) -> Actors:
        """The choice for the clip of frames ``low`` to before ``high``, which counts them from 0."""
        first, last = (int(row) for row in np.searchsorted(self.shown, [low, high]))
        tracks = (t.between(first, last) for t in self.tracks)
        return Actors(tuple(t for t in tracks if len(t.frames)), self.shown[first:last] - np.int32(low))


def choose_actors(tracks: list[Track], shown: NDArray[np.int32]) -> tuple[Joints, NDArray[np.int32]]:
    """At most two actors out of ``tracks``, by the rules above.

    Args:
        tracks: the bodies, none empty.
        shown: int32 [n], the file's frames with a body, to which the tracks' frames count.

    Returns:
        Joints float32 [T, 25 or 50, 3] and the file's frames int32 [T].
    """
    if len(tracks) < 2:
        joints = np.zeros((len(shown), JOINTS, 3), np.float32)
        for track in tracks:
            _place(joints, track)
        return joints, shown
    kept = _without_noise(tracks)
    joints = np.zeros((len(shown), JOINTS if len(kept) == 1 else 2 * JOINTS, 3), np.float32)
    _place(joints[:, :JOINTS], kept[0])
    (start1, stop1), (start2, stop2) = kept[0].span, (0, 0)  # actor 2 has no time yet, which that code writes as 0 to 0
    for track in kept[1:]:
        start, stop = track.span
        if min(stop1, stop) - max(start1, start) <= 0:
            _place(joints[:, :JOINTS], track)
            start1, stop1 = min(start1, start), max(stop1, stop)
        elif min(stop2, stop) - max(start2, start) <= 0:
            _place(joints[:, JOINTS:], track)
            start2, stop2 = min(start2, start), max(stop2, stop)
    seen = joints.any(axis=(1, 2))
    return joints[seen], shown[seen]


def _place(joints: Joints, track: Track) -> None:
    start, stop = track.span
    joints[start : stop + 1] = track.joints


def _without_noise(tracks: list[Track]) -> list[Track]:
    """What is left of several bodies, the one that moves most first."""
    kept = [t for t in tracks if len(t.frames) > SHORTEST] or [max(tracks, key=lambda t: len(t.frames))]
    if len(kept) == 1:
        return kept
    moving: list[tuple[float, Track]] = []
    left = len(kept)
    for track in kept:
        motion = _motion(track.joints)
        width, height = np.ptp(track.joints[..., 0], axis=1), np.ptp(track.joints[..., 1], axis=1)
        plausible = width <= WIDEST * height
        noisy = float((~plausible).mean())
        if left > 1 and noisy >= NOISY:
            left -= 1
            continue
        if left > 1 and noisy > 0:
            motion = min(motion, _motion(track.joints[plausible]))
        moving.append((motion, track))
    return [track for _, track in sorted(moving, key=lambda pair: -pair[0])]


def _motion(joints: Joints) -> float:
    return float(joints.reshape(-1, 3).var(axis=0).sum())
