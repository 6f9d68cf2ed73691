"""Compiled inner loops of Farnebäck's dense flow: polynomial expansion.

Every loop is plain float32 without re-association, so a fresh compilation, cached code and any number of
threads give the same bytes. Planes are separate (``[5, H, W]``) so that the loops over x vectorise, and beside each
other (``[H, W, 8]``) for what is read at other places than in rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion._eights import COUNT, beside
from kdcache.motion.jit import cached_njit
from kdcache.motion.loops import stretch

F32 = NDArray[np.float32]

POLY = 7  # half width of the expansion's window


def _even(row: Any, k: Any) -> Any:
    """``Σ_i k[|i|] row[x + POLY + i]`` over a padded row."""
    s = k[0] * row[7] + k[1] * (row[6] + row[8]) + k[2] * (row[5] + row[9])
    s = s + (k[3] * (row[4] + row[10]) + k[4] * (row[3] + row[11]))
    s = s + (k[5] * (row[2] + row[12]) + k[6] * (row[1] + row[13]))
    return s + k[7] * (row[0] + row[14])


def _odd(row: Any, k: Any) -> Any:
    """``Σ_i k[i] (row[x + POLY + i] − row[x + POLY − i])`` over a padded row."""
    s = k[1] * (row[8] - row[6]) + k[2] * (row[9] - row[5])
    s = s + (k[3] * (row[10] - row[4]) + k[4] * (row[11] - row[3]))
    s = s + (k[5] * (row[12] - row[2]) + k[6] * (row[13] - row[1]))
    return s + k[7] * (row[14] - row[0])


@stretch
def _down(planes: Any, steps: Any, taps: Any) -> None:
    """Sums over the rows above and below, weighted by g, x·g and x²·g."""
    middle, *pairs = planes[:15]
    g, xg, xxg = taps[:8], taps[8:16], taps[16:24]
    even, odd, square = middle[0] * g[0], middle[0] * 0.0, middle[0] * 0.0
    for k in range(1, POLY + 1):
        above, below = pairs[2 * k - 2][0], pairs[2 * k - 1][0]
        both = above + below
        even, square, odd = even + g[k] * both, square + xxg[k] * both, odd + xg[k] * (below - above)
    for plane, value in zip(planes[15:], (even, odd, square), strict=True):
        plane[POLY] = value


@stretch
def _across(planes: Any, steps: Any, taps: Any) -> None:
    """The five coefficients from what :func:`_down` made of the rows."""
    even, odd, square, *out = planes
    g, xg, xxg, (i11, i03, i33, i55) = taps[:8], taps[8:16], taps[16:24], taps[24:]
    level = _even(even, g) * i03
    out[0][0] = _even(odd, g) * i11
    out[1][0] = _odd(even, xg) * i11
    out[2][0] = level + _even(square, g) * i33
    out[3][0] = level + _even(even, xxg) * i33
    out[4][0] = _odd(odd, xg) * i55


@cached_njit(nogil=True)
def _pad(row: F32, n: int) -> None:
    """Repeat the first and last value of a row into its ``n`` padding cells at each end."""
    for i in range(n):
        row[i] = row[n]
        row[row.size - 1 - i] = row[row.size - 1 - n]


@cached_njit(nogil=True)
def expand(image: F32, taps: tuple[np.float32, ...], out: F32, pixels: F32) -> None:
    """Quadratic expansion of ``image [H, W]`` at each pixel into ``out [5, H, W]``, unless that is empty, and
    ``pixels [≥ H · W + 7, 8]``.

    Planes: b_y, b_x, a_yy, a_xx, a_xy of  f ≈ c + bᵀd + dᵀA d  under the applicability whose half kernels g, x·g, x²·g
    are the first 24 of ``taps``; the others are the entries (1,1), (0,3), (3,3), (5,5) of the inverse Gram matrix.
    """
    h, w = image.shape
    r = np.empty((3, w + 2 * POLY), np.float32)
    f = np.zeros((5, w + COUNT), np.float32)
    flat, last = pixels.ravel(), h - 1
    for y in range(h):
        near = (
            image[y],
            image[max(y - 1, 0)], image[min(y + 1, last)], image[max(y - 2, 0)], image[min(y + 2, last)],
            image[max(y - 3, 0)], image[min(y + 3, last)], image[max(y - 4, 0)], image[min(y + 4, last)],
            image[max(y - 5, 0)], image[min(y + 5, last)], image[max(y - 6, 0)], image[min(y + 6, last)],
            image[max(y - 7, 0)], image[min(y + 7, last)],
        )  # fmt: skip
        _down((*near, r[0], r[1], r[2]), 0, w, (0,), taps)
        for row in r:
            _pad(row, POLY)
        _across((r[0], r[1], r[2], f[0], f[1], f[2], f[3], f[4]), 0, w, (0,), taps)
        if out.size:
            out[:, y] = f[:, :w]
        for x in range(0, w, COUNT):  # what a last one writes too much is the next row's
            beside(f, x, flat, y * w + x)
