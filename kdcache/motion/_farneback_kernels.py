"""Compiled inner loops of Farnebäck's dense flow: polynomial expansion, normal equations, smoothing, solution.

Every loop is plain float32 without re-association, so a fresh compilation, cached code and any number of
threads give the same bytes. Planes are separate (``[5, H, W]``) so that the loops over x vectorise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdcache.motion.jit import cached_njit

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

POLY = 7  # half width of the expansion's window
BLUR = 5  # half width of the Gaussian that averages the normal equations (11 taps)


@cached_njit(nogil=True)
def _even(row: F32, k: F32, out: F32) -> None:
    """``out[x] = Σ_i k[|i|] row[x + POLY + i]``, a symmetric 15-tap filter over a padded row."""
    k0, k1, k2, k3, k4, k5, k6, k7 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]
    for x in range(out.size):
        s = k0 * row[x + 7] + k1 * (row[x + 6] + row[x + 8]) + k2 * (row[x + 5] + row[x + 9])
        s += k3 * (row[x + 4] + row[x + 10]) + k4 * (row[x + 3] + row[x + 11])
        s += k5 * (row[x + 2] + row[x + 12]) + k6 * (row[x + 1] + row[x + 13])
        out[x] = s + k7 * (row[x] + row[x + 14])


@cached_njit(nogil=True)
def _odd(row: F32, k: F32, out: F32) -> None:
    """``out[x] = Σ_i k[i] (row[x + POLY + i] − row[x + POLY − i])``, an antisymmetric 15-tap filter."""
    k1, k2, k3, k4, k5, k6, k7 = k[1], k[2], k[3], k[4], k[5], k[6], k[7]
    for x in range(out.size):
        s = k1 * (row[x + 8] - row[x + 6]) + k2 * (row[x + 9] - row[x + 5])
        s += k3 * (row[x + 10] - row[x + 4]) + k4 * (row[x + 11] - row[x + 3])
        s += k5 * (row[x + 12] - row[x + 2]) + k6 * (row[x + 13] - row[x + 1])
        out[x] = s + k7 * (row[x + 14] - row[x])


@cached_njit(nogil=True)
def _pad(row: F32, n: int) -> None:
    """Repeat the first and last value of a row into its ``n`` padding cells at each end."""
    for i in range(n):
        row[i] = row[n]
        row[row.size - 1 - i] = row[row.size - 1 - n]


@cached_njit(nogil=True)
def expand(image: F32, g: F32, xg: F32, xxg: F32, inverse: F32, out: F32) -> None:
    """Quadratic expansion of ``image [H, W]`` at each pixel into ``out [5, H, W]``.

    Planes: b_y, b_x, a_yy, a_xx, a_xy of  f ≈ c + bᵀd + dᵀA d  under the applicability ``g``
    (half kernels ``g, xg, xxg [8]``); ``inverse`` holds the non-zero entries of the inverse Gram matrix.
    """
    h, w = image.shape
    r0 = np.empty(w + 2 * POLY, np.float32)
    r1 = np.empty(w + 2 * POLY, np.float32)
    r2 = np.empty(w + 2 * POLY, np.float32)
    t = np.empty((6, w), np.float32)
    i11, i03, i33, i55 = inverse[0], inverse[1], inverse[2], inverse[3]
    for y in range(h):
        c0, c1, c2 = r0[POLY : POLY + w], r1[POLY : POLY + w], r2[POLY : POLY + w]
        middle = image[y]
        for x in range(w):
            c0[x], c1[x], c2[x] = middle[x] * g[0], np.float32(0.0), np.float32(0.0)
        for k in range(1, POLY + 1):
            above, below = image[max(y - k, 0)], image[min(y + k, h - 1)]
            gk, xk, xxk = g[k], xg[k], xxg[k]
            for x in range(w):
                p = above[x] + below[x]
                c0[x] += gk * p
                c2[x] += xxk * p
            for x in range(w):
                c1[x] += xk * (below[x] - above[x])
        _pad(r0, POLY)
        _pad(r1, POLY)
        _pad(r2, POLY)
        _even(r0, g, t[0])
        _even(r0, xxg, t[1])
        _even(r2, g, t[2])
        _even(r1, g, t[3])
        _odd(r0, xg, t[4])
        _odd(r1, xg, t[5])
        for x in range(w):
            out[0, y, x] = t[3, x] * i11
            out[1, y, x] = t[4, x] * i11
        for x in range(w):
            out[2, y, x] = t[0, x] * i03 + t[2, x] * i33
            out[3, y, x] = t[0, x] * i03 + t[1, x] * i33
            out[4, y, x] = t[5, x] * i55


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


@cached_njit(nogil=True)
def _blend(plane: F32, at: I32, share: F32, w: int, out: F32) -> None:
    """Bilinear samples of a flat ``plane`` of width ``w`` at the places that :func:`_targets` found."""
    s0, s1, s2, s3 = share[0], share[1], share[2], share[3]
    right, low, diagonal = plane[1:], plane[w:], plane[w + 1 :]
    for x in range(out.size):
        i = np.uint32(at[x])
        out[x] = s0[x] * plane[i] + s1[x] * right[i] + s2[x] * low[i] + s3[x] * diagonal[i]


@cached_njit(nogil=True)
def normal_equations(a: F32, b: F32, flow: F32, fade_x: F32, fade_y: F32, out: F32) -> None:
    """Per-pixel normal equations ``out [5, H, W]`` = g11, g12, g22, h1, h2 of the displacement.

    ``a, b [5, H, W]`` are the expansions of the two images, ``flow [2, H, W]`` the present estimate (x, y);
    ``fade`` are the weights that discount a band of five pixels along the border.
    """
    _, h, w = a.shape
    half = np.float32(0.5)
    at, share, own = np.empty(w, np.int32), np.empty((4, w), np.float32), np.empty(w, np.float32)
    p = np.zeros((5, w), np.float32)
    for y in range(h):
        fx, fy = flow[0, y], flow[1, y]
        if w > 1 and h > 1:
            _targets(fx, fy, y, h, at, share, own)
            for c in range(5):
                _blend(b[c].ravel(), at, share, w, p[c])
        else:
            own[:] = 1.0
        for x in range(w):
            s = fade_x[x] * fade_y[y]
            ayy, axx = (a[2, y, x] + p[2, x]) * own[x], (a[3, y, x] + p[3, x]) * own[x]
            axy = (a[4, y, x] + p[4, x]) * (half * own[x])
            by = ((a[0, y, x] - p[0, x]) * half + ayy * fy[x] + axy * fx[x]) * s
            bx = ((a[1, y, x] - p[1, x]) * half + axy * fy[x] + axx * fx[x]) * s
            ayy, axx, axy = ayy * s, axx * s, axy * s
            out[0, y, x] = ayy * ayy + axy * axy
            out[1, y, x] = (ayy + axx) * axy
            out[2, y, x] = axx * axx + axy * axy
            out[3, y, x] = ayy * by + axy * bx
            out[4, y, x] = axy * by + axx * bx


@cached_njit(nogil=True)
def solve(m: F32, k: F32, flow: F32) -> None:
    """Average the normal equations ``m [5, H, W]`` with the half kernel ``k [6]``; write ``flow [2, H, W]`` (x, y)."""
    _, h, w = m.shape
    row = np.empty(w + 2 * BLUR, np.float32)
    s = np.empty((5, w), np.float32)
    k0, k1, k2, k3, k4, k5 = k[0], k[1], k[2], k[3], k[4], k[5]
    centre = row[BLUR : BLUR + w]
    for y in range(h):
        for c in range(5):
            plane = m[c]
            v = plane[y]
            u1, d1 = plane[max(y - 1, 0)], plane[min(y + 1, h - 1)]
            u2, d2 = plane[max(y - 2, 0)], plane[min(y + 2, h - 1)]
            for x in range(w):
                centre[x] = k0 * v[x] + k1 * (u1[x] + d1[x]) + k2 * (u2[x] + d2[x])
            u1, d1 = plane[max(y - 3, 0)], plane[min(y + 3, h - 1)]
            u2, d2 = plane[max(y - 4, 0)], plane[min(y + 4, h - 1)]
            for x in range(w):
                centre[x] += k3 * (u1[x] + d1[x]) + k4 * (u2[x] + d2[x])
            u1, d1 = plane[max(y - 5, 0)], plane[min(y + 5, h - 1)]
            for x in range(w):
                centre[x] += k5 * (u1[x] + d1[x])
            _pad(row, BLUR)
            out = s[c]
            for x in range(w):
                t = k0 * row[x + 5] + k1 * (row[x + 4] + row[x + 6]) + k2 * (row[x + 3] + row[x + 7])
                t += k3 * (row[x + 2] + row[x + 8]) + k4 * (row[x + 1] + row[x + 9])
                out[x] = t + k5 * (row[x] + row[x + 10])
        fx, fy = flow[0, y], flow[1, y]
        for x in range(w):
            det = s[0, x] * s[2, x] - s[1, x] * s[1, x] + np.float32(1e-3)
            det = np.float32(1.0) / (det if det != 0 else np.float32(1e-3))
            fx[x] = (s[0, x] * s[4, x] - s[1, x] * s[3, x]) * det
            fy[x] = (s[2, x] * s[3, x] - s[1, x] * s[4, x]) * det
