"""Orientation and descriptor of SURF key points, and matching them, compiled."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.motion._idt_kernels import bearing
from kdcache.motion.jit import cached_njit

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

PATCH = 20  # samples a side of the descriptor's window
DENSE = 3  # most samples a side of each of the 21 × 21 cells of that window
REACH = 6  # radius of the circle that votes on the orientation, in units of the point's scale


def describe(gray: U8, total: I32, points: F32) -> tuple[NDArray[np.bool_], F32]:
    """Unit descriptors ``[n, 128]`` of ``points [n, 3+]`` (x, y, size), and which of them have one.

    ``total`` is the integral image of ``gray uint8 [H, W]``. Points too near the border have no orientation.
    """
    window = cv2.getGaussianKernel(PATCH, 3.3, cv2.CV_32F)
    descriptors = np.zeros((len(points), 128), np.float32)
    kept = _describe(gray, total, points, window @ window.T, *_circle(), descriptors)
    return kept, descriptors


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
    for k in range(len(points)):
        scale = points[k, 2] * np.float32(1.2) / np.float32(9.0)
        found, angle = _orientation(total, points[k, 0], points[k, 1], scale, circle, votes)
        if found:
            patch = _patch(gray, total, points[k, 0], points[k, 1], scale, angle)
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
def _bilinear(gray: U8, x: np.floating, y: np.floating) -> np.float32:
    """Grey level at (x, y), rounded; the nearest pixel's outside the image."""
    h, w = gray.shape
    if not (0 <= x < w - 1 and 0 <= y < h - 1):
        return np.float32(gray[min(max(int(np.rint(y)), 0), h - 1), min(max(int(np.rint(x)), 0), w - 1)])
    left, top = np.uint64(x), np.uint64(y)
    a, b, one = np.float32(x - np.float64(left)), np.float32(y - np.float64(top)), np.float32(1.0)
    over, under = gray[top], gray[top + np.uint64(1)]
    p, q = np.float32(over[left]), np.float32(over[left + np.uint64(1)])
    r, s = np.float32(under[left]), np.float32(under[left + np.uint64(1)])
    return np.float32(np.rint((p * (one - a) + q * a) * (one - b) + (r * (one - a) + s * a) * b))


@cached_njit(nogil=True)
def _mean(total: I32, x: np.floating, y: np.floating, side: int) -> np.float32:
    """Mean of the square of ``side`` px around (x, y), moved into the image, from an integral image."""
    h, w = total.shape
    left = min(max(int(np.rint(x - (side - 1) / 2)), 0), w - 1 - side)
    top = min(max(int(np.rint(y - (side - 1) / 2)), 0), h - 1 - side)
    box = total[top, left] + total[top + side, left + side] - total[top + side, left] - total[top, left + side]
    return np.float32(box) / np.float32(side * side)


@cached_njit(nogil=True)
def _patch(gray: U8, total: I32, cx: np.float32, cy: np.float32, scale: np.float32, angle: float) -> U8:
    """The square of 21 scales around a point, turned by ``angle``, averaged down to ``[21, 21]``.

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
    turned = np.empty((n, n), np.float32)
    for i in range(n):
        v = first + i * pitch
        for j in range(n):
            u = first + j * pitch
            x, y = cx + u * cos + v * sin, cy - u * sin + v * cos
            turned[i, j] = _bilinear(gray, x, y) if n == side else _mean(total, x, y, box)
    out = np.empty((cells, cells), np.uint8)
    narrow = np.empty((cells, n), np.float32)
    for i in range(cells):
        _average(turned, i * n / cells, (i + 1) * n / cells, narrow[i])
    column = np.empty((n, cells), np.float32)
    for j in range(n):
        for i in range(cells):
            column[j, i] = narrow[i, j]
    line = np.empty(cells, np.float32)
    for j in range(cells):
        _average(column, j * n / cells, (j + 1) * n / cells, line)
        for i in range(cells):
            out[i, j] = np.uint8(np.rint(line[i]))
    return out


@cached_njit(nogil=True)
def _average(rows: F32, start: float, stop: float, out: F32) -> None:
    """Mean of ``rows`` from ``start`` to ``stop``, the first and last counting in part."""
    out[:] = 0
    for y in range(int(start), min(math.ceil(stop), len(rows))):
        share = np.float32((min(y + 1.0, stop) - max(float(y), start)) / (stop - start))
        for x in range(out.size):
            out[x] += rows[y, x] * share


@cached_njit(nogil=True)
def _histogram(patch: U8, window: F32, out: F32) -> None:
    """128 values of a ``patch [21, 21]``: signed and absolute sums of its gradient over 4 × 4 cells, unit length."""
    for y in range(PATCH):
        for x in range(PATCH):
            p, q = np.int32(patch[y, x]), np.int32(patch[y, x + 1])
            r, s = np.int32(patch[y + 1, x]), np.int32(patch[y + 1, x + 1])
            dx, dy = np.float32(q - p + s - r) * window[y, x], np.float32(r - p + s - q) * window[y, x]
            base = ((y // 5) * 4 + x // 5) * 8
            at = base if dy >= 0 else base + 2
            out[at] += dx
            out[at + 1] += abs(dx)
            at = base + 4 if dx >= 0 else base + 6
            out[at] += dy
            out[at + 1] += abs(dy)
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
            s = np.float32(0)
            for k in range(a.shape[1]):
                d = a[j, k] - b[i, k]
                s += d * d
            if s < best:
                best, out[i] = s, j
    return out
