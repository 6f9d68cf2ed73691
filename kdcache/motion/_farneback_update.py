"""Compiled inner loops of Farnebäck's dense flow: one iteration, from the normal equations to the displacement.

Plain float32 without re-association, as in ``_farneback_kernels``. Rows of the equations are made as the averaging
reaches them and kept while it needs them, so that they never leave the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion._eights import COUNT, USED, blend
from kdcache.motion.jit import cached_njit
from kdcache.motion.loops import stretch

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

BLUR = 5  # half width of the Gaussian that averages the normal equations (11 taps)
_ROWS = 2 * BLUR + 1
_LINE = 16  # float32 of a line of the processor's cache


@cached_njit(nogil=True)
def iterate(a: F32, b: F32, flow: F32, fade_x: F32, fade_y: F32, taps: F32) -> None:
    """One iteration of the displacement ``flow [2, H, W]`` (x, y), in place.

    ``a [5, H, W]`` and ``b [≥ H · W, 8]`` are the expansions of the two images; ``fade`` are the weights that discount
    a band of five pixels along the border, ``taps [6]`` half the kernel that averages the equations.
    """
    _, h, w = a.shape
    wide, stride = (w + COUNT - 1) // COUNT * COUNT, (w + 2 * BLUR + _LINE - 1) // _LINE * _LINE
    at, share, own = np.zeros(wide, np.int32), np.zeros((4, wide), np.float32), np.ones(w, np.float32)
    p = np.zeros((USED, wide), np.float32)  # the second image's coefficients where the pixels land
    rows = _aligned(_ROWS, USED * stride)  # of equations, row r at r % 11
    line, sums = np.zeros(USED * stride, np.float32), np.zeros((USED, stride), np.float32)
    pixels, halves = b.ravel(), (taps[0], taps[1], taps[2], taps[3], taps[4], taps[5])
    for y in range(h + BLUR):
        if y < h:
            fx, fy, row = flow[0, y], flow[1, y], rows[y % _ROWS]
            if w > 1 and h > 1:
                _targets(fx, fy, y, h, at, share, own)
                for x in range(0, w, COUNT):
                    blend(pixels, w, at, share, x, p)
            first = (a[0, y], a[1, y], a[2, y], a[3, y], a[4, y])
            second = (p[0], p[1], p[2], p[3], p[4])
            g = (row, row[stride:], row[2 * stride :], row[3 * stride :], row[4 * stride :])
            _equations((*first, *second, fx, fy, own, fade_x, *g), 0, w, (0,), (fade_y[y],))
        y -= BLUR
        if y >= 0:
            near = (
                rows[y % _ROWS],
                rows[max(y - 1, 0) % _ROWS], rows[min(y + 1, h - 1) % _ROWS],
                rows[max(y - 2, 0) % _ROWS], rows[min(y + 2, h - 1) % _ROWS],
                rows[max(y - 3, 0) % _ROWS], rows[min(y + 3, h - 1) % _ROWS],
                rows[max(y - 4, 0) % _ROWS], rows[min(y + 4, h - 1) % _ROWS],
                rows[max(y - 5, 0) % _ROWS], rows[min(y + 5, h - 1) % _ROWS],
            )  # fmt: skip
            _down((*near, line), 0, len(line) - BLUR, (0,), halves)
            for c in range(USED):
                centre = c * stride + BLUR
                for i in range(1, BLUR + 1):
                    line[centre - i], line[centre + w - 1 + i] = line[centre], line[centre + w - 1]
            _across((line, sums.ravel()), 0, len(line) - 2 * BLUR, (0,), halves)
            _solve(sums, flow[0, y], flow[1, y])


@cached_njit(nogil=True)
def _aligned(height: int, width: int) -> F32:
    """Zeros ``[height, width]`` that begin with a line of the cache: reads across two lines take twice as long."""
    room = np.zeros(height * width + _LINE, np.float32)
    skipped = (-room.ctypes.data // 4) % _LINE
    return room[skipped : skipped + height * width].reshape(height, width)


@cached_njit(nogil=True)
def _targets(fx: F32, fy: F32, y: int, h: int, at: I32, share: F32, own: F32) -> None:
    """Where the pixels of row ``y`` land: index ``at [w]`` of the upper left of the four pixels around, their
    bilinear weights ``share [4, w]``, and ``own [w]``, the weight of the first image's coefficients.

    Outside the second image the four weights are 0 and ``own`` is 1; inside, both images count one half.
    """
    w = fx.size
    one, zero, half = np.float32(1.0), np.float32(0.0), np.float32(0.5)
    right, bottom = np.float32(w - 1), np.float32(h - 1)
    row, last_x, last_y = np.float32(y), np.float32(max(w - 2, 0)), np.float32(max(h - 2, 0))
    for x in range(w):
        px, py = np.float32(np.int32(x)) + fx[x], row + fy[x]
        inside = (px >= zero) & (px < right) & (py >= zero) & (py < bottom)
        cx = np.int32(min(max(px, zero), last_x)) if inside else np.int32(0)
        cy = np.int32(min(max(py, zero), last_y)) if inside else np.int32(0)
        dx, dy = px - np.float32(cx), py - np.float32(cy)
        at[x] = cy * np.int32(w) + cx
        share[0, x] = (one - dx) * (one - dy) if inside else zero
        share[1, x] = dx * (one - dy) if inside else zero
        share[2, x] = (one - dx) * dy if inside else zero
        share[3, x] = dx * dy if inside else zero
        own[x] = half if inside else one


@stretch
def _equations(planes: Any, steps: Any, fade_y: Any) -> None:
    """Normal equations g11, g12, g22, h1, h2 of a row from the coefficients of both images."""
    b1, b2, a11, a22, a12, p1, p2, p11, p22, p12 = (plane[0] for plane in planes[:10])
    fx, fy, own, fade = (plane[0] for plane in planes[10:14])
    s = fade * fade_y[0]
    ayy, axx, axy = (a11 + p11) * own, (a22 + p22) * own, (a12 + p12) * (0.5 * own)
    by = ((b1 - p1) * 0.5 + ayy * fy + axy * fx) * s
    bx = ((b2 - p2) * 0.5 + axy * fy + axx * fx) * s
    ayy, axx, axy = ayy * s, axx * s, axy * s
    found = (ayy * ayy + axy * axy, (ayy + axx) * axy, axx * axx + axy * axy, ayy * by + axy * bx, axy * by + axx * bx)
    for plane, value in zip(planes[14:], found, strict=True):
        plane[0] = value


@stretch
def _down(planes: Any, steps: Any, k: Any) -> None:
    """A row averaged with the five above and below it by half the kernel ``k``."""
    v, u1, d1, u2, d2, u3, d3, u4, d4, u5, d5 = (plane[0] for plane in planes[:11])
    t = k[0] * v + k[1] * (u1 + d1) + k[2] * (u2 + d2)
    t = t + (k[3] * (u3 + d3) + k[4] * (u4 + d4))
    planes[11][BLUR] = t + k[5] * (u5 + d5)


@stretch
def _across(planes: Any, steps: Any, k: Any) -> None:
    """Values of a row averaged with the five left and right of each."""
    line, out = planes
    t = k[0] * line[5] + k[1] * (line[4] + line[6]) + k[2] * (line[3] + line[7])
    t = t + (k[3] * (line[2] + line[8]) + k[4] * (line[1] + line[9]))
    out[0] = t + k[5] * (line[0] + line[10])


@cached_njit(nogil=True)
def _solve(s: F32, fx: F32, fy: F32) -> None:
    """The displacement ``fx, fy [W]`` from the averaged equations ``s [5, W+]``."""
    for x in range(fx.size):
        det = s[0, x] * s[2, x] - s[1, x] * s[1, x] + np.float32(1e-3)
        det = np.float32(1.0) / (det if det != 0 else np.float32(1e-3))
        fx[x] = (s[0, x] * s[4, x] - s[1, x] * s[3, x]) * det
        fy[x] = (s[2, x] * s[3, x] - s[1, x] * s[4, x]) * det
