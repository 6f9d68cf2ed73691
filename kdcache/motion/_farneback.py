"""Farnebäck's dense flow over the √2 pyramid that improved dense trajectories track in.

G. Farnebäck, "Two-frame motion estimation based on polynomial expansion", SCIA 2003, with the settings of
the original improved-trajectories program: window of 15 (σ 1.5), two iterations a scale, averaging over 11
taps (σ 1.5), each scale's flow median-filtered (5×5) before the next, finer one starts from it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.motion import _farneback_kernels as kernels
from kdcache.motion._eights import COUNT
from kdcache.motion._farneback_update import BLUR, iterate
from kdcache.motion.median import median5

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

STRIDE = math.sqrt(2.0)  # ratio of one scale to the next
_SIGMA = 1.5
_ITERATIONS = 2
_FADE = np.array([0.14, 0.14, 0.4472, 0.4472, 0.4472], np.float32)


def pyramid(height: int, width: int, smallest: int, most: int) -> tuple[list[float], list[tuple[int, int]]]:
    """Scales (1, √2, 2, …) and sizes ``(height, width)``, as long as the shorter side is ≥ ``smallest``.

    There is always one scale, and never more than ``most``.
    """
    side, count = float(min(height, width)), 0
    while side >= smallest:
        side /= STRIDE
        count += 1
    scales = [STRIDE**i for i in range(max(1, min(count, most)))]
    return scales, [(max(1, round(height / s)), max(1, round(width / s))) for s in scales]


class Expansion(NamedTuple):
    """Coefficients of a picture's quadratic expansion: ``planes float32 [5, h, w]``, and ``pixels [h · w + 8, 8]``.

    The latter holds the five of a pixel beside each other and three values that mean nothing, row after row.
    """

    planes: F32
    pixels: F32


class Farneback:
    """Dense flow between frames of one size, at every scale of a pyramid.

    ``scales`` and ``sizes`` come from :func:`pyramid`. :meth:`expand` is done once an image,
    :meth:`flow` once a pair of expansions.
    """

    def __init__(self, scales: list[float], sizes: list[tuple[int, int]]) -> None:
        self.scales, self.sizes = scales, sizes
        self._expanding = _applicability()
        taps = np.exp(-(np.arange(BLUR + 1) ** 2) / (2 * _SIGMA**2))
        self._taps = (taps / (2 * taps.sum() - 1)).astype(np.float32)
        self._raw = self.flows()  # before the median filter
        self._fades = [(_fade(w), _fade(h)) for h, w in sizes]

    def expansions(self, first: bool = True) -> list[Expansion]:
        """Memory for :meth:`expand`; if the picture will not be ``first`` of a pair, without what only that needs."""
        return [
            Expansion(
                np.empty((5, h, w) if first else (5, 0, 0), np.float32), np.empty((h * w + COUNT, COUNT), np.float32)
            )
            for h, w in self.sizes
        ]

    def flows(self) -> list[F32]:
        """Memory for :meth:`flow`."""
        return [np.empty((2, h, w), np.float32) for h, w in self.sizes]

    def expand(self, gray: U8, out: list[Expansion] | None = None) -> list[Expansion]:
        """Polynomial expansions, one a scale, of a frame ``uint8 [H, W]``; ``out`` are older ones to write over.

        Each scale starts from the full-size frame, blurred with σ = (scale − 1) / 2 and resized.
        """
        image = gray.astype(np.float32)
        out = out or self.expansions()
        for scale, (h, w), expansion in zip(self.scales, self.sizes, out, strict=True):
            sigma = (scale - 1) / 2
            taps = max(round(sigma * 5) | 1, 3)
            level: Any = cv2.GaussianBlur(image, (taps, taps), sigma, sigmaY=sigma)
            if scale > 1:
                level = cv2.resize(level, (w, h), interpolation=cv2.INTER_LINEAR)
            kernels.expand(level, self._expanding, *expansion)
        return out

    def flow(self, first: list[Expansion], second: list[Expansion], out: list[F32] | None = None) -> list[F32]:
        """Median-filtered flow from ``first`` to ``second``, ``float32 [2, h, w]`` (x, y) a scale, in its pixels.

        ``out`` are flows of before to write over.
        """
        flows = out or self.flows()
        rows = np.empty((5, self.sizes[0][1] + 4), np.float32)
        coarser: F32 | None = None
        for level in reversed(range(len(self.scales))):
            (h, w), flow, raw = self.sizes[level], flows[level], self._raw[level]
            if coarser is None:
                raw[:] = 0
            else:
                for c in range(2):
                    cv2.resize(coarser[c], (w, h), dst=raw[c], interpolation=cv2.INTER_LINEAR)
                raw *= np.float32(STRIDE)
            for _ in range(_ITERATIONS):
                iterate(first[level].planes, second[level].pixels, raw, *self._fades[level], self._taps)
            for c in range(2):
                median5(raw[c].ravel(), 0, w, (h, w), rows, flow[c].ravel())
            coarser = flow
        return flows


def _applicability() -> tuple[np.float32, ...]:
    """Half kernels g, x·g, x²·g of 8 values, then the entries (1,1), (0,3), (3,3), (5,5) of the inverse Gram matrix."""
    x = np.arange(-kernels.POLY, kernels.POLY + 1, dtype=np.float64)
    g = np.exp(-(x**2) / (2 * _SIGMA**2))
    g = (g / g.sum()).astype(np.float32).astype(np.float64)
    yy, xx = np.meshgrid(x, x, indexing="ij")
    basis = np.stack([np.ones_like(xx), xx, yy, xx**2, yy**2, xx * yy])
    gram = np.einsum("ihw,jhw,hw->ij", basis, basis, np.outer(g, g))
    inverse = np.linalg.inv(gram)
    entries = [inverse[1, 1], inverse[0, 3], inverse[3, 3], inverse[5, 5]]
    half = g[kernels.POLY :]
    steps = x[kernels.POLY :]
    return tuple(np.concatenate([half, steps * half, steps**2 * half, entries]).astype(np.float32))


def _fade(size: int) -> F32:
    """Weights along one axis that discount the five pixels next to each border."""
    weights = np.ones(size, np.float32)
    band = min(len(_FADE), size)
    weights[:band] *= _FADE[:band]
    weights[size - band :] *= _FADE[:band][::-1]
    return weights
