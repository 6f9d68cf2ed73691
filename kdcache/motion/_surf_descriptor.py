"""Orientation and descriptor of SURF key points, and matching them, compiled."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.motion._idt_kernels import bearing, squares_of
from kdcache.motion.jit import cached_njit

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

PATCH = 20  # samples a side of the descriptor's window
DENSE = 3  # most samples a side of each of the 21 × 21 cells of that window
PADDED = 32  # values of a row of 21 cells in memory: whole vectors
_SURELY = np.float32(1.001)  # further than that is further in any order of summing some hundred values
REACH = 6  # radius of the circle that votes on the orientation, in units of the point's scale


def describe(gray: U8, total: I32, points: F32) -> tuple[NDArray[np.bool_], F32]:
    """Unit descriptors ``[n, 128]`` of ``points [n, 3+]`` (x, y, size), and which of them have one.

    ``total`` is the integral image of ``gray uint8 [H, W]``. Points too near the border have no orientation.
    """
    window = cv2.getGaussianKernel(PATCH, 3.3, cv2.CV_32F)
    descriptors = np.zeros((len(points), 128), np.float32)
    kept = _describe(gray, total, points, window @ window.T, *_circle(), descriptors)
    return kept, descriptors


@functools.cache
def _circle() -> tuple[I32, F32]:
    """Offsets ``[m, 2]`` (x, y) within REACH of the origin and their Gaussian weights ``[m]``."""
    g = cv2.getGaussianKernel(2 * REACH + 1, 2.5, cv2.CV_32F)[:, 0]
    span = range(-REACH, REACH + 1)
    offsets = [(i, j) for i in span for j in span if i * i + j * j <= REACH * REACH]
    weights = [g[i + REACH] * g[j + REACH] for i, j in offsets]
    return np.array(offsets, np.int32), np.array(weights, np.float32)


@cached_njit(nogil=True)
def _describe(gray: U8, total: I32, points: F32, window: F32, circle: I32, votes: F32, out: F32) -> NDArray[np.bool_]:
    """Descriptors of ``points`` into ``out``; false for those too near the border to have an orientation."""
    kept = np.zeros(len(points), np.bool_)
    squares = squares_of(gray)
    for k in range(len(points)):
        scale = points[k, 2] * np.float32(1.2) / np.float32(9.0)
        found, angle = _orientation(total, points[k, 0], points[k, 1], scale, circle, votes)
        if found:
            patch = _patch(squares, total, points[k, 0], points[k, 1], scale, angle)
            _histogram(patch, window, out[k])
            kept[k] = True
    return kept


@cached_njit(nogil=True)
def _orientation(
    total: I32, cx: np.float32, cy: np.float32, scale: np.float32, circle: I32, votes: F32
) -> tuple[bool, float]:
    """Direction in radians towards which most gradients within a 60° window point, and whether any was in reach."""
    side = 2 * int(np.rint(2 * scale))
    half, area = side // 2, np.float32(side * (side // 2))
    offset = np.float32(side - 1) / np.float32(2)
    h, w = total.shape
    vx, vy = np.empty(len(circle), np.float32), np.empty(len(circle), np.float32)
    n = 0
    for k in range(len(circle)):
        x = int(np.rint(cx + np.float32(circle[k, 0]) * scale - offset))
        y = int(np.rint(cy + np.float32(circle[k, 1]) * scale - offset))
        if y < 0 or y >= h - side or x < 0 or x >= w - side:
            continue
        a, c, e = total[y, x], total[y, x + half], total[y, x + side]
        p, q = total[y + half, x], total[y + half, x + side]
        s, u, v = total[y + side, x], total[y + side, x + half], total[y + side, x + side]
        vx[n] = (np.float32(v + c - u - e) - np.float32(u + a - s - c)) / area * votes[k]
        vy[n] = (np.float32(q + a - p - e) - np.float32(v + p - s - q)) / area * votes[k]
        n += 1
    if n == 0:
        return False, 0.0
    length, degrees = np.empty(n, np.float32), np.empty(n, np.float32)
    bearing(vx[:n], vy[:n], length, degrees)
    sums = np.zeros((2, 3 * 360 + 1), np.float64)  # running sums over three turns: any window is one difference
    for k in range(n):
        d = int(np.rint(degrees[k])) % 360
        for turn in range(3):
            sums[0, d + turn * 360 + 1] += vx[k]
            sums[1, d + turn * 360 + 1] += vy[k]
    for d in range(3 * 360):
        sums[0, d + 1] += sums[0, d]
        sums[1, d + 1] += sums[1, d]
    best, bx, by = 0.0, 0.0, 0.0
    for i in range(360, 720, 5):
        sx, sy = sums[0, i + 30] - sums[0, i - 29], sums[1, i + 30] - sums[1, i - 29]
        if sx * sx + sy * sy > best:
            best, bx, by = sx * sx + sy * sy, sx, sy
    return True, math.atan2(-by, bx)


@cached_njit(nogil=True)
def _levels(squares: U32, x: F64, y: F64, dx: float, dy: float, at: U32, share: F32, out: F32) -> None:
    """Grey levels at ``(x + dx, y + dy) [n]``, interpolated and rounded; the nearest pixel's outside the image.

    ``squares [H, W]`` are the four levels around each place (:func:`squares_of`); ``at [n]`` and ``share [2, n]`` are
    working space. What is read at computed places has a loop of its own, so that the others vectorise.
    """
    h, w = squares.shape
    a, b, flat = share[0], share[1], squares.ravel()
    one, low, width = np.float32(1.0), np.uint32(255), np.float64(w)
    for j in range(out.size):
        px, py = x[j] + dx, y[j] + dy
        inside = (px >= 0.0) & (px < w - 1.0) & (py >= 0.0) & (py < h - 1.0)
        px = px if inside else min(max(np.rint(px), 0.0), w - 1.0)
        py = py if inside else min(max(np.rint(py), 0.0), h - 1.0)
        left, top = np.floor(px), np.floor(py)
        at[j] = np.int32(top * width + left)
        a[j], b[j] = np.float32(px - left), np.float32(py - top)
    for j in range(out.size):
        at[j] = flat[at[j]]
    for j in range(out.size):
        p, q = np.float32(np.int32(at[j] & low)), np.float32(np.int32(at[j] >> np.uint32(8) & low))
        r, s = np.float32(np.int32(at[j] >> np.uint32(16) & low)), np.float32(np.int32(at[j] >> np.uint32(24)))
        out[j] = np.rint((p * (one - a[j]) + q * a[j]) * (one - b[j]) + (r * (one - a[j]) + s * a[j]) * b[j])


@cached_njit(nogil=True)
def _means(total: I32, x: F64, y: F64, dx: float, dy: float, side: int, at: U32, out: F32) -> None:
    """Means of squares of ``side`` px around ``(x + dx, y + dy) [n]``, moved into the image, from an integral image.

    ``at [n]`` is working space.
    """
    h, w = total.shape
    half, right, bottom, width = (side - 1) / 2, np.float64(w - 1 - side), np.float64(h - 1 - side), np.float64(w)
    for j in range(out.size):
        left = min(max(np.rint(x[j] + dx - half), 0.0), right)
        top = min(max(np.rint(y[j] + dy - half), 0.0), bottom)
        at[j] = np.int32(top * width + left)
    flat, across, below = total.ravel(), np.uint64(side), np.uint64(side * w)
    for j in range(out.size):
        i = np.uint64(at[j])
        at[j] = flat[i] + flat[i + below + across] - flat[i + below] - flat[i + across]
    area = np.float32(side * side)
    for j in range(out.size):
        out[j] = np.float32(np.int32(at[j])) / area


@cached_njit(nogil=True)
def _patch(squares: U32, total: I32, cx: np.float32, cy: np.float32, scale: np.float32, angle: float) -> F32:
    """The square of 21 scales around a point, turned by ``angle``, averaged down to 21 × 21 levels: ``[21, PADDED]``.

    Up to DENSE samples a cell and axis it is read pixel by pixel, as in OpenCV; larger squares are read as
    that many box means, so that the cost of a point has a bound.
    """
    cells = PATCH + 1
    side = int(np.float32(cells) * scale)
    n = min(side, cells * DENSE)
    pitch = side / n
    box = int(np.rint(pitch))
    sin, cos = -math.sin(angle), math.cos(angle)
    first = (pitch - side) / 2.0
    wide = (n + 15) // 16 * 16  # whole vectors: what would be left over takes as long as the rest
    turned, x, y = np.empty((n, wide), np.float32), np.empty(wide, np.float64), np.empty(wide, np.float64)
    at, share = np.empty(wide, np.uint32), np.empty((2, wide), np.float32)
    for j in range(wide):
        u = first + np.float64(np.int32(j)) * pitch
        x[j], y[j] = cx + u * cos, cy - u * sin
    for i in range(n):
        v = first + i * pitch
        if n == side:
            _levels(squares, x, y, v * sin, v * cos, at, share, turned[i])
        else:
            _means(total, x, y, v * sin, v * cos, box, at, turned[i])
    line, narrow = np.empty(wide, np.float32), np.zeros((n, PADDED), np.float32)  # the latter turned over
    for i in range(cells):
        _average(turned, i * n / cells, (i + 1) * n / cells, line)
        for j in range(n):
            narrow[j, i] = line[j]
    out, column = np.empty((cells, PADDED), np.float32), np.empty(PADDED, np.float32)
    for j in range(cells):
        _average(narrow, j * n / cells, (j + 1) * n / cells, column)
        for i in range(cells):
            out[i, j] = np.rint(column[i])
    return out


@cached_njit(nogil=True)
def _average(rows: F32, start: float, stop: float, out: F32) -> None:
    """Mean of ``rows`` from ``start`` to ``stop``, the first and last counting in part."""
    out[:] = 0
    for y in range(int(start), min(math.ceil(stop), len(rows))):
        share = np.float32((min(y + 1.0, stop) - max(float(y), start)) / (stop - start))
        row = rows[y]
        for x in range(out.size):
            out[x] += row[x] * share


@cached_njit(nogil=True)
def _histogram(patch: F32, window: F32, out: F32) -> None:
    """128 values of a ``patch [21, 21+]``: signed and absolute sums of its gradient over 4 × 4 cells, unit length.

    Of each cell: dx where dy ≥ 0, |dx| there, the same where dy < 0, and dy likewise by the sign of dx.
    """
    zero = np.float32(0.0)
    dx, dy = np.empty(PATCH, np.float32), np.empty(PATCH, np.float32)
    for y in range(PATCH):
        over, under, weights = patch[y], patch[y + 1], window[y]
        for x in range(PATCH):
            p, q, r, s = over[x], over[x + 1], under[x], under[x + 1]
            dx[x], dy[x] = (q - p + s - r) * weights[x], (r - p + s - q) * weights[x]
        for cell in range(4):
            sums = out[((y // 5) * 4 + cell) * 8 :]
            for x in range(5 * cell, 5 * cell + 5):
                rising, right = dy[x] >= zero, dx[x] >= zero
                sums[0] += dx[x] if rising else zero
                sums[1] += abs(dx[x]) if rising else zero
                sums[2] += zero if rising else dx[x]
                sums[3] += zero if rising else abs(dx[x])
                sums[4] += dy[x] if right else zero
                sums[5] += abs(dy[x]) if right else zero
                sums[6] += zero if right else dy[x]
                sums[7] += zero if right else abs(dy[x])
    square = 0.0
    for k in range(out.size):
        square += out[k] * out[k]
    norm = np.float32(1.0 / (math.sqrt(square) + 2.220446049250313e-16))
    for k in range(out.size):
        out[k] *= norm


@cached_njit(nogil=True)
def nearest(first: F32, second: F32, a: F32, b: F32, reach: float) -> I32:
    """For each point of ``second [m, 2]`` the index into ``first [n, 2]`` of the most alike within ``reach``, or −1.

    Alike means least L2 distance of the descriptors ``a [n, d]`` and ``b [m, d]``; nearness is along each axis.
    """
    out = np.full(len(second), -1, np.int32)
    for i in range(len(second)):
        best = np.float32(np.inf)
        for j in range(len(first)):
            if abs(second[i, 0] - first[j, 0]) >= reach or abs(second[i, 1] - first[j, 1]) >= reach:
                continue
            if _about(a[j], b[i]) > best * _SURELY:
                continue
            s = np.float32(0)
            for k in range(a.shape[1]):
                d = a[j, k] - b[i, k]
                s += d * d
            if s < best:
                best, out[i] = s, j
    return out


@cached_njit(nogil=True, fastmath={"reassoc"})
def _about(a: F32, b: F32) -> np.float32:
    """The squared distance, summed in any order: what it decides holds for all of them."""
    s = np.float32(0)
    for k in range(a.size):
        d = a[k] - b[k]
        s += d * d
    return s
