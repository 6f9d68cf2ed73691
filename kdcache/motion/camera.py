"""Camera motion between two frames: a homography, and flow with it removed.

After H. Wang and C. Schmid, "Action recognition with improved trajectories", ICCV 2013, section 2: matched
features and flow at good corners vote for one homography (RANSAC, 1 px).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, unknown
from kdcache.motion import _idt_kernels as kernels
from kdcache.motion import _surf
from kdcache.motion._surf_descriptor import nearest

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

FeatureKind = Literal["surf", "sift", "none"]
KINDS: tuple[FeatureKind, ...] = ("surf", "sift", "none")

_CORNERS = 1000  # most corners whose flow votes
_WINDOW = 25.0  # furthest that a matched feature may have moved, px along each axis
_VOTES = 50  # fewer votes than this leave the camera unmoved …
_INLIERS = 25  # … and so do fewer of them that agree
_TRACKED = 300  # most corners that are tracked to check the vote
_CLEARLY = 0.88  # share of its error that another homography must stay under to replace the vote
_HESSIAN = 200.0  # least strength of a SURF point
_SMALLEST = 16  # shorter side below which SIFT is not asked, px
_MARGIN = 5.0  # border of the second frame that is not trusted after warping, px


@dataclass(frozen=True)
class Features:
    """Key points ``float32 [n, 2]`` (x, y) of one frame and a descriptor row for each."""

    points: F32
    descriptors: F32


class FeatureFinder:
    """Finds key points outside ``people`` and describes them; one instance serves many frames."""

    def __init__(self, kind: FeatureKind) -> None:
        if kind not in KINDS:
            raise unknown("feature kind", kind, KINDS)
        self.kind = kind
        self._sift: Any = cv2.SIFT.create() if kind == "sift" else None

    def __call__(self, gray: U8, allowed: U8 | None) -> Features:
        """Features of ``gray uint8 [H, W]`` where ``allowed uint8 [H, W]`` is not 0."""
        if self.kind == "surf":
            return Features(*_surf.detect(gray, allowed, _HESSIAN))
        if self.kind == "sift" and min(gray.shape) >= _SMALLEST:
            points, descriptors = self._sift.detectAndCompute(gray, allowed)
            if len(points):
                return Features(np.array([p.pt for p in points], np.float32), descriptors)
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))


def match(first: Features, second: Features) -> tuple[F32, F32]:
    """For each feature of ``second`` the most alike of ``first`` within 25 px: points ``[n, 2]`` in each frame."""
    found = nearest(first.points, second.points, first.descriptors, second.descriptors, _WINDOW)
    return first.points[found[found >= 0]], second.points[found >= 0]


def homography(
    prev: U8,
    next: U8,
    flow: F32,
    mask: NDArray[Any] | None = None,
    features: FeatureKind = "surf",
    checked: bool = True,
) -> F64:
    """The camera's motion from ``prev`` to ``next`` as a matrix ``float64 [3, 3]`` that takes points (x, y, 1) there.

    ``prev`` and ``next`` are grey or RGB ``uint8 [H, W(, 3)]``, ``flow`` is ``float32 [H, W, 2]`` (x, y) in pixels
    from ``prev`` to ``next``; ``mask [H, W]`` is true where people may be, whose motion then has no vote.
    The original's vote (see :func:`vote`), and with ``checked`` what :func:`check` makes of it. The result is the
    same on every call. Raises :class:`ClipError` when the sizes differ.
    """
    a, b = as_gray(prev), as_gray(next)
    if a.shape != b.shape or flow.shape != (*a.shape, 2) or (mask is not None and mask.shape != a.shape):
        raise ClipError(
            f"Camera motion needs frames, flow and mask of one size, but got {a.shape}, {b.shape}, {flow.shape[:2]}"
            + (f", {mask.shape}" if mask is not None else "")
            + "; resize them alike."
        )
    allowed = None if mask is None else (np.asarray(mask) == 0).astype(np.uint8)
    finder = FeatureFinder(features)
    matches = match(finder(a, allowed), finder(b, allowed))
    corners = good_corners(a, allowed)
    found = vote(corners, np.moveaxis(flow, 2, 0), matches)
    return check(found, a, b, corners, allowed) if checked else found


def good_corners(gray: U8, allowed: U8 | None) -> F32:
    """Up to 1000 corners ``[n, 2]`` (x, y) of ``gray`` where ``allowed`` is not 0, strongest first."""
    corners = cv2.goodFeaturesToTrack(gray, _CORNERS, 0.001, 3, mask=allowed)
    return np.zeros((0, 2), np.float32) if corners is None else np.asarray(corners, np.float32).reshape(-1, 2)


def vote(corners: F32, flow: F32, matches: tuple[F32, F32]) -> F64:
    """The original program's homography: feature ``matches`` and ``flow [2, H, W]`` at ``corners`` vote for it.

    Fewer than 51 votes, or fewer than 26 that agree to 1 px, give the identity.
    """
    x, y = corners[:, 0].astype(np.intp), corners[:, 1].astype(np.intp)
    moved = corners + flow[:, y, x].T
    return _ransac(np.concatenate([corners, matches[0]]), np.concatenate([moved, matches[1]]), _VOTES)


def check(found: F64, prev: U8, next: U8, corners: F32, allowed: U8 | None) -> F64:
    """``found``, or a homography that aligns the frames clearly better. [reconstructed]

    Farnebäck's flow fades to 0 where there is little texture, and those corners can outvote a moving camera;
    conversely noise can move a still one. So two others stand beside the vote: one from corners tracked by
    Lucas and Kanade's method, and a still camera. The best replaces the vote only if its mean grey-level
    difference between ``prev`` and the aligned ``next`` is under 0.88 of the vote's.
    """
    strong = corners[:_TRACKED, None]
    others = [np.eye(3)]
    if len(strong) > _INLIERS:
        moved, status, _ = cv2.calcOpticalFlowPyrLK(prev, next, strong, np.zeros_like(strong), winSize=(15, 15))
        good = status[:, 0] > 0
        others.append(_ransac(strong[good, 0], moved[good, 0], _INLIERS))
    seen = np.ones_like(prev) if allowed is None else allowed
    bar = _CLEARLY * kernels.misalignment(prev, next, found.ravel(), _MARGIN, seen)
    errors = [kernels.misalignment(prev, next, m.ravel(), _MARGIN, seen) for m in others]
    best = int(np.argmin(errors))
    return others[best] if errors[best] < bar else found


def _ransac(first: F32, second: F32, fewest: int) -> F64:
    """Homography between points ``[n, 2]``; the identity for no more than ``fewest`` or too little agreement."""
    identity = np.eye(3)
    if len(first) <= fewest or not np.isfinite(second).all():
        return identity
    found, inliers = cv2.findHomography(first, second, cv2.RANSAC, 1.0)
    if found is None or np.count_nonzero(inliers) <= _INLIERS:
        return identity
    usable = np.isfinite(found).all() and np.linalg.cond(found) < 1e12
    return np.asarray(found, np.float64) if usable else identity


def warp_back(prev: U8, next: U8, matrix: F64) -> U8:
    """``next`` as a still camera would have seen it: ``uint8 [H, W]`` aligned with ``prev``.

    Pixels that ``next`` does not show, or shows within 5 px of its border, are taken from ``prev``.
    """
    out = np.empty_like(prev)
    kernels.warp_back(prev, next, matrix.ravel(), _MARGIN, out)
    return out


def warped_flow(flow: F32, matrix: F64) -> F32:
    """``flow float32 [H, W, 2]`` with the camera motion ``matrix`` removed: H⁻¹(p + flow(p)) − p.

    What flow would be had the second frame been warped back first (the warped flow of two-stream networks),
    without computing it again. Zero where a pixel moves with the camera.
    """
    h, w = flow.shape[:2]
    gx, gy = grid(h, w)
    x, y = project(np.asarray(np.linalg.inv(matrix), np.float64), gx + flow[..., 0], gy + flow[..., 1])
    moved = np.stack([x - gx, y - gy], axis=2)
    return np.where(np.isfinite(moved), moved, flow).astype(np.float32)


def as_gray(frame: U8) -> U8:
    """A grey ``uint8 [H, W]`` frame from grey or RGB; raises :class:`ClipError` for anything else."""
    if frame.dtype != np.uint8 or not (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3)):
        raise ClipError(
            f"Frames must be uint8 [H, W] or [H, W, 3] RGB, but got {frame.dtype} {list(frame.shape)};"
            " convert them first."
        )
    if frame.ndim == 2:
        return np.ascontiguousarray(frame)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), np.uint8)


def grid(h: int, w: int) -> tuple[F64, F64]:
    """Pixel coordinates x ``[1, W]`` and y ``[H, 1]``."""
    return np.arange(w, dtype=np.float64)[None], np.arange(h, dtype=np.float64)[:, None]


def project(matrix: F64, x: Any, y: Any) -> tuple[F64, F64]:
    """Points (x, y) under a homography; infinite on its horizon."""
    m = matrix
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / (m[2, 0] * x + m[2, 1] * y + m[2, 2])
        return (m[0, 0] * x + m[0, 1] * y + m[0, 2]) * scale, (m[1, 0] * x + m[1, 1] * y + m[1, 2]) * scale
