"""Compiled inner loops of improved dense trajectories: sampling, tracking, pruning, histograms.

Live tracks of one scale lie in a circular queue of slots, oldest first; tracks born in one frame are
neighbours, so those that reach full length are always at its head. Plain float32, no re-association.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdcache.motion.jit import cached_njit

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
B8 = NDArray[np.bool_]

_DEGREES = np.float32(180.0 / math.pi)


@cached_njit(nogil=True)
def advance(points: F32, moves: F32, age: I32, live: B8, flow: F32, warped: F32) -> None:
    """Move each live track of a scale by one frame.

    ``points [n, L+1, 2]`` and ``moves [n, L, 2]`` grow at ``age [n]``; ``flow, warped [2, h, w]`` are the flow
    and the flow without camera motion. A track that leaves the image stops being ``live``.
    """
    _, h, w = flow.shape
    for i in range(live.size):
        if not live[i]:
            continue
        t = age[i]
        px, py = points[i, t, 0], points[i, t, 1]
        x = min(max(int(np.rint(px)), 0), w - 1)
        y = min(max(int(np.rint(py)), 0), h - 1)
        qx, qy = px + flow[0, y, x], py + flow[1, y, x]
        if not (0 < qx < w and 0 < qy < h):
            live[i] = False
            continue
        moves[i, t, 0], moves[i, t, 1] = warped[0, y, x], warped[1, y, x]
        points[i, t + 1, 0], points[i, t + 1, 1] = qx, qy
        age[i] = t + 1


@cached_njit(nogil=True)
def sample(eigen: F32, threshold: float, step: int, points: F32, age: I32, live: B8) -> F32:
    """Grid points ``[n, 2]`` whose ``eigen [h, w]`` exceeds ``threshold``, in cells that hold no live track."""
    h, w = eigen.shape
    rows, columns = h // step, w // step
    taken = np.zeros((rows, columns), np.bool_)
    for i in range(live.size):
        if live[i]:
            x, y = int(points[i, age[i], 0]) // step, int(points[i, age[i], 1]) // step
            if x < columns and y < rows:
                taken[y, x] = True
    out = np.empty((rows * columns, 2), np.float32)
    n = 0
    for j in range(rows):
        for i in range(columns):
            x, y = i * step + step // 2, j * step + step // 2
            if not taken[j, i] and eigen[y, x] > threshold:
                out[n, 0], out[n, 1] = x, y
                n += 1
    return out[:n]


@cached_njit(nogil=True)
def judge(points: F32, moves: F32, limits: F32, stats: F32) -> B8:
    """Which complete tracks are worth keeping, and their figures.

    ``points [n, L+1, 2]`` and ``moves [n, L, 2]`` in pixels of the full-size frame. ``limits`` are the least
    and largest standard deviation, the largest step, the share of the length that one step may have, and the
    least warped step. ``stats [n, 5]`` gets mean x, mean y, deviation x, deviation y, length; ``moves`` of
    kept tracks are divided by their total length.
    """
    n, count, _ = points.shape
    keep = np.zeros(n, np.bool_)
    norm = np.float32(1.0) / np.float32(count)
    zero = np.float32(0.0)
    for i in range(n):
        for c in range(2):
            mean, var = zero, zero
            for t in range(count):
                mean += points[i, t, c]
            mean *= norm
            for t in range(count):
                d = points[i, t, c] - mean
                var += d * d
            stats[i, c], stats[i, 2 + c] = mean, math.sqrt(var * norm)
        length, longest, total, furthest = zero, zero, zero, zero
        for t in range(count - 1):
            dx, dy = points[i, t + 1, 0] - points[i, t, 0], points[i, t + 1, 1] - points[i, t, 1]
            d = np.float32(math.sqrt(dx * dx + dy * dy))
            length += d
            longest = max(longest, d)
            m = np.float32(math.sqrt(moves[i, t, 0] * moves[i, t, 0] + moves[i, t, 1] * moves[i, t, 1]))
            total += m
            furthest = max(furthest, m)
        stats[i, 4] = length
        still = stats[i, 2] < limits[0] and stats[i, 3] < limits[0]
        wild = stats[i, 2] > limits[1] or stats[i, 3] > limits[1]
        jump = longest > limits[2] and longest > length * limits[3]
        if still or wild or jump or not furthest > limits[4]:
            continue
        keep[i] = True
        for t in range(count - 1):
            moves[i, t, 0] /= total
            moves[i, t, 1] /= total
    return keep


@cached_njit(nogil=True, error_model="numpy")  # a look for divisors of 0 would keep the loop from being vectorised
def bearing(x: F32, y: F32, magnitude: F32, degrees: F32) -> None:
    """Length and direction (degrees in [0, 360)) of each vector (x, y), by OpenCV's polynomial arc tangent."""
    p1, p3 = np.float32(0.9997878412794807) * _DEGREES, np.float32(-0.3258083974640975) * _DEGREES
    p5, p7 = np.float32(0.1555786518463281) * _DEGREES, np.float32(-0.04432655554792128) * _DEGREES
    eps = np.float32(2.220446049250313e-16)
    for i in range(x.size):
        ax, ay = abs(x[i]), abs(y[i])
        low, high = min(ax, ay), max(ax, ay)
        c = low / (high + eps)
        c2 = c * c
        a = (((p7 * c2 + p5) * c2 + p3) * c2 + p1) * c
        a = a if ax >= ay else np.float32(90.0) - a
        a = a if x[i] >= 0 else np.float32(180.0) - a
        a = a if y[i] >= 0 else np.float32(360.0) - a
        degrees[i] = a if a < 360 else np.float32(0.0)
        magnitude[i] = math.sqrt(x[i] * x[i] + y[i] * y[i])


@cached_njit(nogil=True)
def squares_of(gray: U8) -> NDArray[np.uint32]:
    """Each pixel's grey level with those to the right, below and diagonal: bytes from the lowest, 0 over the border."""
    h, w = gray.shape
    out = np.empty((h, w), np.uint32)
    for y in range(h):
        over, under, row = gray[y], gray[min(y + 1, h - 1)], out[y]
        for x in range(w - 1):
            top = np.uint32(over[x]) | np.uint32(over[x + 1]) << np.uint32(8)
            low = np.uint32(under[x]) | np.uint32(under[x + 1]) << np.uint32(8)
            row[x] = top | low << np.uint32(16)
        row[w - 1] = np.uint32(over[w - 1]) | np.uint32(under[w - 1]) << np.uint32(16)
    return out


@cached_njit(nogil=True)
def _space(w: int) -> tuple[I32, I32, U32, I32]:
    """What :func:`_seen` writes to: ``at, part, found, levels [w]``."""
    return np.empty(w, np.int32), np.empty(w, np.int32), np.empty(w, np.uint32), np.empty(w, np.int32)


@cached_njit(nogil=True)
def _seen(squares: U32, m: F64, y: int, margin: float, at: I32, part: I32, found: U32, levels: I32) -> None:
    """Grey ``levels [w]`` (0 … 255) that a frame shows at the images of row ``y`` under ``m [9]``.

    ``squares [H, W]`` are the frame's (:func:`squares_of`). −1 outside it or within ``margin`` ≥ 1 of its border.
    Positions are rounded to 1/32 px and weights are integers, as in OpenCV's 8-bit warping. ``at, part, found [w]``
    are working space: pixel index, fractions, and the levels there.
    """
    h, w = squares.shape
    right, bottom = w - 1 - margin, h - 1 - margin
    x0, y0, z0 = m[1] * y + m[2], m[4] * y + m[5], m[7] * y + m[8]
    for x in range(w):
        u = np.float64(np.int32(x))
        depth = z0 + m[6] * u
        inverse = 1.0 / (depth if depth != 0.0 else np.inf)
        px, py = (x0 + m[0] * u) * inverse, (y0 + m[3] * u) * inverse
        shown = (px > margin) & (px < right) & (py > margin) & (py < bottom)
        ix = np.int32(np.rint(px * 32.0)) if shown else np.int32(0)
        iy = np.int32(np.rint(py * 32.0)) if shown else np.int32(0)
        at[x] = (iy >> np.int32(5)) * np.int32(w) + (ix >> np.int32(5)) if shown else np.int32(-1)
        part[x] = (iy & np.int32(31)) * np.int32(32) + (ix & np.int32(31))
    flat = squares.ravel()
    for x in range(w):
        found[x] = flat[np.uint32(max(at[x], np.int32(0)))]
    low, all_of_it = np.uint32(255), np.int32(32)
    for x in range(w):
        p, q = np.int32(found[x] & low), np.int32(found[x] >> np.uint32(8) & low)
        r, s = np.int32(found[x] >> np.uint32(16) & low), np.int32(found[x] >> np.uint32(24))
        b, a = part[x] >> np.int32(5), part[x] & np.int32(31)
        over, under = (all_of_it - a) * p + a * q, (all_of_it - a) * r + a * s
        level = ((all_of_it - b) * over + b * under + np.int32(512)) >> np.int32(10)
        levels[x] = level if at[x] >= 0 else np.int32(-1)


@cached_njit(nogil=True)
def warp_back(prev: U8, next: U8, m: F64, margin: float, out: U8) -> None:
    """``next`` seen through the homography ``m [9]`` into ``out [H, W]``.

    Pixels that fall outside ``next`` or within ``margin`` of its border are copied from ``prev``.
    """
    h, w = prev.shape
    squares, space = squares_of(next), _space(w)
    levels = space[3]
    for y in range(h):
        _seen(squares, m, y, margin, *space)
        for x in range(w):
            out[y, x] = levels[x] if levels[x] >= 0 else prev[y, x]


@cached_njit(nogil=True)
def misalignment(prev: U8, next: U8, m: F64, margin: float, allowed: U8) -> float:
    """Mean difference in grey levels between ``prev`` and ``next`` seen through ``m [9]``.

    Only where ``allowed``; infinite when ``next`` shows less than half of that.
    """
    h, w = prev.shape
    squares, space = squares_of(next), _space(w)
    levels = space[3]
    total, count, asked = 0, 0, 0
    for y in range(h):
        _seen(squares, m, y, margin, *space)
        own, row = prev[y], np.int32(0)
        here, seen = np.int32(0), np.int32(0)
        for x in range(w):
            wanted = allowed[y, x] != 0
            shown = wanted & (levels[x] >= 0)
            here += np.int32(wanted)
            seen += np.int32(shown)
            row += abs(levels[x] - np.int32(own[x])) if shown else np.int32(0)
        total, count, asked = total + int(row), count + int(seen), asked + int(here)
    return total / count if count > 0 and 2 * count >= asked else np.inf
