"""Compiled inner loops of the descriptors along trajectories: histograms of directions in the patches of tracks.

Rows of the integral histogram are made one after the other and a track's patch is read as soon as its last row is
there, so that no more rows are kept than a patch is high and they stay in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion import _eights as eights
from kdcache.motion import simd
from kdcache.motion._idt_kernels import bearing
from kdcache.motion.jit import cached_njit
from kdcache.motion.loops import stretch

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
B8 = NDArray[np.bool_]

PATCH = 32  # side of the patch, px of its scale
_HALF, _ROWS = PATCH // 2, PATCH + 1
_FLOOR = np.float32(0.05)  # added to every bin before normalising


@cached_njit(nogil=True)
def places(points: F32, age: I32, live: B8, height: int, width: int) -> tuple[I32, I32, I32]:
    """Where the patches of live tracks lie in a frame: ``left [n]``, tracks by their patch's last row, and where each
    row's begin among these ``[height + 2]``.
    """
    n = live.size
    left, last = np.empty(n, np.int32), np.empty(n, np.int32)
    begin = np.zeros(height + 2, np.int32)
    for i in range(n):
        if live[i]:
            x, y = points[i, age[i], 0], points[i, age[i], 1]
            left[i] = min(max(int(np.rint(x)) - _HALF, 0), width - PATCH)
            last[i] = min(max(int(np.rint(y)) - _HALF, 0), height - PATCH) + PATCH
            begin[last[i] + 1] += 1
    for y in range(height + 1):
        begin[y + 1] += begin[y]
    order, free = np.empty(n, np.int32), begin.copy()
    for i in range(n):
        if live[i]:
            order[free[last[i]]] = i
            free[last[i]] += 1
    return left, order, begin


@cached_njit(nogil=True)
def describe(
    x: F32,
    y: F32,
    gradient: bool,
    quiet: float,
    where: tuple[I32, I32, I32],
    age: I32,
    span: int,
    offset: int,
    out: F32,
) -> None:
    """Add each live track's histogram of this frame to its descriptor ``out[i, offset:]``.

    The directions are those of the vectors ``x, y [h, w]``, or with ``gradient`` of the gradient of ``x``. Each is
    shared between its two nearest of 8 bins in proportion to its length; if ``quiet`` ≥ 0 there is a ninth, in which
    vectors no longer count 1 instead. Cells: 2 × 2 of the patch (x outer), and one of three in time by age (``span``
    frames each); L1-normalised, then square-rooted, averaged over the frames of the cell.
    """
    h, w = x.shape
    left, order, begin = where
    bins = 9 if quiet >= 0 else 8
    dx, dy = np.empty(w, np.float32), np.empty(w, np.float32)
    magnitude, degrees = np.empty(w, np.float32), np.empty(w, np.float32)
    number, one, other = np.empty(w, np.int32), np.empty(w, np.float32), np.empty(w, np.float32)
    rows = np.zeros((_ROWS, 8 * (w + 1)), np.float32)  # of the integral histogram, row r at r % 33
    still = np.zeros((_ROWS, w + 1), np.float32)  # of its ninth bin
    cell = np.empty(4 * 9, np.float32)
    share = np.float32(1.0) / np.float32(span)
    for r in range(1, h + 1):
        if gradient:
            _slope(x, r - 1, dx, dy)
            bearing(dx, dy, magnitude, degrees)
        else:
            bearing(x[r - 1], y[r - 1], magnitude, degrees)
        _shares(magnitude, degrees, quiet, number, one, other)
        above, row = rows[(r - 1) % _ROWS], rows[r % _ROWS]
        row[:8] = 0.0
        eights.accumulate(number, one, other, above, row)
        if bins == 9:
            _count(magnitude, quiet, still[(r - 1) % _ROWS], still[r % _ROWS])
        middle, top = rows[(r - _HALF) % _ROWS], rows[(r - PATCH) % _ROWS]
        for k in range(begin[r], begin[r + 1]):
            i = order[k]
            for q in range(4):
                low, high = (top, middle) if q % 2 == 0 else (middle, row)
                a = left[i] + q // 2 * _HALF
                eights.box(low, high, a, a + _HALF, cell, q * bins)
                if bins == 9:
                    v, u = (r - _HALF) % _ROWS, (r - PATCH) % _ROWS
                    if q % 2:
                        v, u = r % _ROWS, v
                    s = still[v, a + _HALF] + still[u, a] - still[v, a]
                    cell[q * 9 + 8] = max(s - still[u, a + _HALF], np.float32(0.0))
            total = np.float32(0.0)
            for j in range(4 * bins):
                cell[j] += _FLOOR
                total += cell[j]
            _add(
                (cell, out[i, offset + age[i] // span * 4 * bins :]),
                0,
                4 * bins,
                (0,),
                (np.float32(1.0) / total, share),
            )


@stretch
def _add(planes: Any, steps: Any, factors: Any) -> None:
    cell, out = planes
    out[0] = out[0] + simd.sqrt(cell[0] * factors[0]) * factors[1]


@cached_njit(nogil=True)
def _slope(image: F32, y: int, dx: F32, dy: F32) -> None:
    """Differences of the pixels on both sides of those of row ``y``; 0 across the border."""
    h, w = image.shape
    dx[0], dx[w - 1], dy[:] = 0.0, 0.0, 0.0
    row = image[y]
    for x in range(1, w - 1):
        dx[x] = row[x + 1] - row[x - 1]
    if 0 < y < h - 1:
        over, under = image[y - 1], image[y + 1]
        for x in range(w):
            dy[x] = under[x] - over[x]


@cached_njit(nogil=True)
def _shares(magnitude: F32, degrees: F32, quiet: float, number: I32, one: F32, other: F32) -> None:
    """The bin of each vector, what it gives to that and what to the next; nothing if no longer than ``quiet``."""
    zero = np.float32(0.0)
    for i in range(magnitude.size):
        f = degrees[i] * np.float32(8.0 / 360.0)
        b = np.int32(f)
        m = magnitude[i] if magnitude[i] > quiet else zero
        part = (f - np.float32(b)) * m
        number[i], one[i], other[i] = b & np.int32(7), m - part, part


@cached_njit(nogil=True)
def _count(magnitude: F32, quiet: float, above: F32, out: F32) -> None:
    """A row of the integral of vectors no longer than ``quiet``."""
    count = np.int32(0)
    for i in range(magnitude.size):
        count += np.int32(magnitude[i] <= quiet)
        out[i + 1] = above[i + 1] + np.float32(count)
