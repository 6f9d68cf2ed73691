"""Tracks points through dense flow, frame by frame: the engine of improved dense trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError, unknown
from kdcache.motion import _idt_kernels as kernels
from kdcache.motion._farneback import Farneback, pyramid
from kdcache.motion._histogram_kernels import PATCH
from kdcache.motion.camera import (
    FeatureFinder,
    FeatureKind,
    Features,
    as_gray,
    check,
    good_corners,
    match,
    vote,
    warp_back,
)
from kdcache.motion.descriptors import SIZE, TIME_CELLS, add_descriptors

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


CAMERAS = ("checked", "original", "still")


@dataclass(frozen=True)
class IDTParams:
    """Settings of the trajectories; the defaults are those of the original program.

    ``length`` is the number of steps of a track, ``step`` the sampling grid in pixels of each scale,
    ``scales`` the most scales (√2 apart, down to a shorter side of 32 px), ``quality`` the share of the frame's
    best corner that a point needs. Kept tracks deviate by at least ``min_deviation`` and at most
    ``max_deviation`` px, make no step over both ``max_step`` px and ``max_share`` of their length, and move at
    least once by more than ``min_warped`` px with the camera's motion removed. ``features`` are matched for
    the camera beside flow. ``camera``: ``"original"`` takes the original's homography, ``"checked"`` replaces it where
    another aligns the frames clearly better (:func:`kdcache.motion.camera.check`) [reconstructed], ``"still"``
    takes the camera for still.
    """

    length: int = 15
    step: int = 5
    scales: int = 8
    quality: float = 0.001
    min_deviation: float = math.sqrt(3.0)
    max_deviation: float = 50.0
    max_step: float = 20.0
    max_share: float = 0.7
    min_warped: float = 1.0
    features: FeatureKind = "surf"
    camera: Literal["checked", "original", "still"] = "checked"

    def __post_init__(self) -> None:
        for name in ("length", "step", "scales"):
            if getattr(self, name) < 1:
                raise OptionError(f"IDTParams.{name} must be at least 1, but is {getattr(self, name)}.")
        if self.camera not in CAMERAS:
            raise unknown("camera estimate", self.camera, CAMERAS)

    @property
    def limits(self) -> F32:
        """The five thresholds of pruning in the order that the compiled code takes them."""
        return np.array(
            [self.min_deviation, self.max_deviation, self.max_step, self.max_share, self.min_warped], np.float32
        )


@dataclass(frozen=True)
class Finished:
    """Tracks of one scale that ended in frame ``frame`` and were kept.

    ``points float32 [n, L+1, 2]`` in pixels of the full-size frame, ``moves [n, L, 2]`` normalised warped
    displacements, ``stats [n, 5]`` mean x, mean y, deviation x, deviation y, length; ``descriptors [n, 396]``
    (n × 0 when not asked for).
    """

    frame: int
    scale: float
    points: F32
    moves: F32
    stats: F32
    descriptors: F32


@dataclass
class _Queue:
    """Live tracks of one scale, oldest first, in ``[head, tail)`` of arrays that grow when full."""

    length: int
    descriptor: int
    head: int = 0
    tail: int = 0
    arrays: dict[str, NDArray[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.arrays = self._allocate(256)

    def _allocate(self, n: int) -> dict[str, NDArray[Any]]:
        return {
            "points": np.zeros((n, self.length + 1, 2), np.float32),
            "moves": np.zeros((n, self.length, 2), np.float32),
            "age": np.zeros(n, np.int32),
            "live": np.zeros(n, np.bool_),
            "descriptors": np.zeros((n, self.descriptor), np.float32),
        }

    def window(self, *names: str) -> list[NDArray[Any]]:
        """Views of the named arrays over the tracks in the queue."""
        return [self.arrays[name][self.head : self.tail] for name in names]

    def append(self, points: F32) -> None:
        """Start tracks at ``points [n, 2]``."""
        n, held = len(points), self.tail - self.head
        capacity = len(self.arrays["age"])
        if self.tail + n > capacity:
            grown = self._allocate(max(2 * (held + n), capacity))
            for name, array in self.arrays.items():
                grown[name][:held] = array[self.head : self.tail]
            self.arrays, self.head, self.tail = grown, 0, held
        new = slice(self.tail, self.tail + n)
        self.arrays["points"][new, 0] = points
        self.arrays["age"][new] = 0
        self.arrays["live"][new] = True
        self.arrays["descriptors"][new] = 0
        self.tail += n

    def pop(self) -> tuple[F32, F32, F32]:
        """Take the tracks of full length off the head: copies of their points, moves and descriptors."""
        age, live = self.window("age", "live")
        complete = live & (age == self.length)
        out = [a[complete] for a in self.window("points", "moves", "descriptors")]
        live &= age < self.length
        self.head += int(np.argmax(live)) if live.any() else len(live)
        return out[0], out[1], out[2]


class Tracker:
    """Improved dense trajectories over a stream of frames of one size, one :meth:`push` a frame."""

    def __init__(self, height: int, width: int, params: IDTParams | None = None, descriptors: bool = False) -> None:
        self.params = params or IDTParams()
        _check_descriptors(height, width, self.params, descriptors)
        self.shape = (height, width)
        self.scales, self.sizes = pyramid(height, width, PATCH, self.params.scales)
        self._flow = Farneback(self.scales, self.sizes)
        self._features = FeatureFinder("none" if self.params.camera == "still" else self.params.features)
        self._queues = [_Queue(self.params.length, SIZE if descriptors else 0) for _ in self.scales]
        self._descriptors = descriptors
        self._limits = self.params.limits
        # Written over frame by frame, for new memory would take longer to get than to fill: of the frame before, of
        # this one and of this one without camera motion; flow as seen and without it.
        self._expansions = [self._flow.expansions(), self._flow.expansions(), self._flow.expansions(first=False)]
        self._flows = [self._flow.flows() for _ in range(2)]
        self._previous: tuple[list[U8], Features] | None = None
        self.frame = -1  # index of the frame pushed last

    def push(self, frame: U8, people: NDArray[Any] | None = None) -> list[Finished]:
        """Track into ``frame`` (``uint8 [H, W, 3]`` RGB or ``[H, W]``); the tracks that ended in it, scale by scale.

        ``people [H, W]`` is true where people may be, whose motion says nothing of the camera.
        """
        gray = as_gray(frame)
        if np.may_share_memory(gray, frame):  # it is needed again with the next one, which may be written over it
            gray = gray.copy()
        if gray.shape != self.shape or (people is not None and people.shape != self.shape):
            raise ClipError(
                f"Frame {self.frame + 1} or its mask is not {self.shape} like the first; resize them alike."
            )
        self.frame += 1
        allowed = None if people is None else (np.asarray(people) == 0).astype(np.uint8)
        grays = self._levels(gray)
        expanded, expansion, _ = self._expansions
        self._flow.expand(gray, expansion)
        features = self._features(gray, allowed)
        finished: list[Finished] = []
        if self._previous is not None:
            before, known = self._previous
            flow = self._flow.flow(expanded, expansion, self._flows[0])
            warped = self._without_camera(before[0], gray, flow, (known, features), allowed)
            for level, queue in enumerate(self._queues):
                finished += self._advance(queue, level, before[level], flow[level], warped[level])
        for queue, level_gray in zip(self._queues, grays, strict=True):
            self._sample(queue, level_gray)
        self._previous = (grays, features)
        self._expansions[:2] = expansion, expanded
        return finished

    def _levels(self, gray: U8) -> list[U8]:
        levels = [gray]
        for h, w in self.sizes[1:]:
            levels.append(np.asarray(cv2.resize(levels[-1], (w, h), interpolation=cv2.INTER_LINEAR), np.uint8))
        return levels

    def _without_camera(
        self,
        before: U8,
        gray: U8,
        flow: list[F32],
        features: tuple[Features, Features],
        allowed: U8 | None,
    ) -> list[F32]:
        """Flow from ``before`` to the second frame as a still camera would have seen it."""
        if self.params.camera == "still":
            return flow
        corners = good_corners(before, allowed)
        matrix = vote(corners, flow[0], match(*features))
        if self.params.camera == "checked":
            matrix = check(matrix, before, gray, corners, allowed)
        expanded, _, warped = self._expansions
        self._flow.expand(warp_back(before, gray, matrix), warped)
        return self._flow.flow(expanded, warped, self._flows[1])

    def _advance(self, queue: _Queue, level: int, gray: U8, flow: F32, warped: F32) -> list[Finished]:
        points, moves, age, live = queue.window("points", "moves", "age", "live")
        if self._descriptors:
            out = queue.window("descriptors")[0]
            add_descriptors(gray, warped, points, age, live, out, self.params.length)
        kernels.advance(points, moves, age, live, flow, warped)
        ended, shifts, described = queue.pop()
        scale = np.float32(self.scales[level])
        ended *= scale
        shifts *= scale
        stats = np.empty((len(ended), 5), np.float32)
        keep = kernels.judge(ended, shifts, self._limits, stats)
        if not keep.any():
            return []
        return [Finished(self.frame, float(scale), ended[keep], shifts[keep], stats[keep], described[keep])]

    def _sample(self, queue: _Queue, gray: U8) -> None:
        eigen: Any = cv2.cornerMinEigenVal(gray, 3, ksize=3)
        threshold = float(eigen.max()) * self.params.quality
        queue.append(kernels.sample(eigen, threshold, self.params.step, *queue.window("points", "age", "live")))


def _check_descriptors(height: int, width: int, params: IDTParams, descriptors: bool) -> None:
    if not descriptors:
        return
    if min(height, width) < PATCH:
        raise ClipError(
            f"Frames of {width}×{height} are smaller than the {PATCH}-pixel window of the descriptors; enlarge them"
            " or take trajectories without descriptors."
        )
    if params.length % TIME_CELLS:
        raise OptionError(
            f"IDTParams.length must be a multiple of {TIME_CELLS} for descriptors, but is {params.length}."
        )
