"""SURF key points and descriptors, compiled, because no OpenCV wheel carries them.

H. Bay, A. Ess, T. Tuytelaars, L. Van Gool, "Speeded-up robust features", CVIU 2008 (its patents have lapsed):
box-filter Hessians in 4 octaves of 2 layers, oriented, 128 values a point, with the constants that
OpenCV 2.4 used under the original improved-trajectories program.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.motion._surf_descriptor import describe
from kdcache.motion.jit import cached_njit

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

OCTAVES = 4
LAYERS = 2  # layers of an octave in which maxima are sought, between one more on each side
SMALLEST = 9  # side of the smallest Hessian filter, px; others are SMALLEST + 6·layer, doubled each octave

# Boxes (x0, y0, x1, y1, weight) of the 9-px second derivatives xx, yy, xy.
_BOXES = np.array(
    [
        [0, 2, 3, 7, 1], [3, 2, 6, 7, -2], [6, 2, 9, 7, 1],
        [2, 0, 7, 3, 1], [2, 3, 7, 6, -2], [2, 6, 7, 9, 1],
        [1, 1, 4, 4, 1], [5, 1, 8, 4, -1], [1, 5, 4, 8, -1], [5, 5, 8, 8, 1],
    ],
    np.float64,
)  # fmt: skip


def detect(gray: U8, allowed: U8 | None, threshold: float) -> tuple[F32, F32]:
    """SURF of ``gray uint8 [H, W]``: points ``[n, 2]`` (x, y) and unit descriptors ``[n, 128]``, strongest first.

    ``threshold`` is the least determinant of the Hessian; points lie where at least half of their filter is
    ``allowed`` (``uint8 [H, W]`` of 0 and 1).
    """
    total = np.asarray(cv2.integral(gray), np.int32)
    mask = None if allowed is None else np.asarray(cv2.integral(allowed), np.int32)
    found = [_octave(total, mask, octave, threshold) for octave in range(OCTAVES)]
    points = np.concatenate(found)
    points = points[np.lexsort((points[:, 0], points[:, 1], -points[:, 2], -points[:, 3]))]
    kept, descriptors = describe(gray, total, points)
    return points[kept, :2], descriptors[kept]


def _octave(total: I32, mask: I32 | None, octave: int, threshold: float) -> F32:
    """Points of one octave, rows x, y, size, strength."""
    step = 1 << octave
    height, width = total.shape[0] - 1, total.shape[1] - 1
    sides = [(SMALLEST + 6 * layer) << octave for layer in range(LAYERS + 2)]
    if min(height, width) < sides[2]:
        return np.zeros((0, 4), np.float32)
    phases = np.zeros((step, len(total), -(-total.shape[1] // step)), np.int32)
    for phase in range(step):
        own = total[:, phase::step]
        phases[phase, :, : own.shape[1]] = own
    strength = np.zeros((LAYERS + 2, height // step, width // step), np.float32)
    for layer, side in enumerate(sides):
        if side <= min(height, width):
            shape = (1 + (height - side) // step, 1 + (width - side) // step)
            margin = (side // 2) // step
            inner = strength[layer, margin : margin + shape[0], margin : margin + shape[1]]
            _hessian(phases, *_scaled(side), inner)
    found = [
        _maxima(strength[layer - 1 : layer + 2], sides[layer - 1], sides[layer], sides[layer + 1], step, threshold)
        for layer in range(1, LAYERS + 1)
    ]
    points = np.concatenate(found)
    if mask is not None:
        points = points[_allowed(mask, points)]
    return points[:, :4]


@functools.cache
def _scaled(side: int) -> tuple[I32, F64]:
    """The ten boxes of a filter of ``side`` px: corners ``int32 [10, 4]`` and weights per pixel ``[10]``."""
    corners = np.rint(_BOXES[:, :4] * (side / SMALLEST)).astype(np.int32)
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return corners, (_BOXES[:, 4] / area).astype(np.float32).astype(np.float64)


def _allowed(mask: I32, points: F32) -> NDArray[np.bool_]:
    """Points whose filter (columns 4–6: left, top, side) lies at least half in the mask, given as an integral."""
    x, y, side = (points[:, i].astype(np.intp) for i in (4, 5, 6))
    inside = mask[y + side, x + side] + mask[y, x] - mask[y + side, x] - mask[y, x + side]
    return np.asarray(inside >= 0.5 * side * side)


@cached_njit(nogil=True)
def _hessian(phases: I32, corners: I32, weights: F64, out: F32) -> None:
    """Determinants of the box-filter Hessian at every ``step``-th pixel into ``out``.

    ``phases [step, H+1, ·]`` is the integral image with column x at ``[x % step, :, x // step]``, so that
    neighbouring results read neighbouring memory.
    """
    step = len(phases)
    rows, columns = out.shape
    d = np.empty((3, columns), np.float64)
    for i in range(rows):
        d[:] = 0.0
        for k in range(10):
            x0, x1 = corners[k, 0], corners[k, 2]
            y0, y1 = i * step + corners[k, 1], i * step + corners[k, 3]
            left, right = x0 // step, x1 // step
            tl, bl = phases[x0 % step, y0, left : left + columns], phases[x0 % step, y1, left : left + columns]
            tr, br = phases[x1 % step, y0, right : right + columns], phases[x1 % step, y1, right : right + columns]
            weight = weights[k]
            row = d[min(k // 3, 2)]
            for j in range(columns):
                row[j] += np.float64(tl[j] + br[j] - bl[j] - tr[j]) * weight
        for j in range(columns):
            dxx, dyy, dxy = np.float32(d[0, j]), np.float32(d[1, j]), np.float32(d[2, j])
            out[i, j] = dxx * dyy - np.float32(0.81) * dxy * dxy


@cached_njit(nogil=True)
def _maxima(n: F32, below: int, side: int, above: int, step: int, threshold: float) -> F32:
    """Maxima of the middle of three layers, refined: rows x, y, size, strength, left, top, side of the filter."""
    _, rows, columns = n.shape
    margin = (above // 2) // step + 1
    out = np.empty((rows * columns // 4 + 1, 7), np.float32)
    count = 0
    for i in range(margin, rows - margin):
        for j in range(margin, columns - margin):
            v = n[1, i, j]
            if not v > threshold or not _peak(n, i, j):
                continue
            top, left = step * (i - (side // 2) // step), step * (j - (side // 2) // step)
            dx, dy, ds = _refine(n, i, j)
            if (dx == 0 and dy == 0 and ds == 0) or not (abs(dx) <= 1 and abs(dy) <= 1 and abs(ds) <= 1):
                continue
            half = np.float32(side - 1) * np.float32(0.5)
            out[count, 0] = np.float32(left) + half + dx * np.float32(step)
            out[count, 1] = np.float32(top) + half + dy * np.float32(step)
            out[count, 2] = np.rint(np.float32(side) + ds * np.float32(side - below))
            out[count, 3], out[count, 4], out[count, 5], out[count, 6] = v, left, top, side
            count += 1
    return out[:count]


@cached_njit(nogil=True)
def _peak(n: F32, i: int, j: int) -> bool:
    """Whether the middle of a 3 × 3 × 3 neighbourhood exceeds all others."""
    v = n[1, i, j]
    for s in range(3):
        for y in range(i - 1, i + 2):
            for x in range(j - 1, j + 2):
                if n[s, y, x] >= v and not (s == 1 and y == i and x == j):
                    return False
    return True


@cached_njit(nogil=True)
def _refine(n: F32, i: int, j: int) -> tuple[np.float32, np.float32, np.float32]:
    """Offset (x, y, layer) of the extremum of the quadratic through a 3 × 3 × 3 neighbourhood; 0 if it has none."""
    v = n[1, i, j]
    bx, by, bs = (
        (n[1, i, j - 1] - n[1, i, j + 1]) / 2,
        (n[1, i - 1, j] - n[1, i + 1, j]) / 2,
        (n[0, i, j] - n[2, i, j]) / 2,
    )
    xx, yy = n[1, i, j - 1] - 2 * v + n[1, i, j + 1], n[1, i - 1, j] - 2 * v + n[1, i + 1, j]
    ss = n[0, i, j] - 2 * v + n[2, i, j]
    xy = (n[1, i + 1, j + 1] - n[1, i + 1, j - 1] - n[1, i - 1, j + 1] + n[1, i - 1, j - 1]) / 4
    xs = (n[2, i, j + 1] - n[2, i, j - 1] - n[0, i, j + 1] + n[0, i, j - 1]) / 4
    ys = (n[2, i + 1, j] - n[2, i - 1, j] - n[0, i + 1, j] + n[0, i - 1, j]) / 4
    c0, c1, c2 = yy * ss - ys * ys, ys * xs - xy * ss, xy * ys - yy * xs
    det = xx * c0 + xy * c1 + xs * c2
    if det == 0:
        return np.float32(0), np.float32(0), np.float32(0)
    x = (bx * c0 + by * c1 + bs * c2) / det
    y = (bx * c1 + by * (xx * ss - xs * xs) + bs * (xy * xs - xx * ys)) / det
    s = (bx * c2 + by * (xy * xs - xx * ys) + bs * (xx * yy - xy * xy)) / det
    return np.float32(x), np.float32(y), np.float32(s)
