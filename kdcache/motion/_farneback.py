"""Farnebäck's dense flow over the √2 pyramid that improved dense trajectories track in.

G. Farnebäck, "Two-frame motion estimation based on polynomial expansion", SCIA 2003, with the settings of
the original improved-trajectories program: window of 15 (σ 1.5), two iterations a scale, averaging over 11
taps (σ 1.5), each scale's flow median-filtered (5×5) before the next, finer one starts from it.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.motion import _farneback_kernels as kernels

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


class Farneback:
    """Dense flow between frames of one size, at every scale of a pyramid.

    ``scales`` and ``sizes`` come from :func:`pyramid`. :meth:`expand` is done once an image,
    :meth:`flow` once a pair of expansions.
    """

    def __init__(self, scales: list[float], sizes: list[tuple[int, int]]) -> None:
        self.scales, self.sizes = scales, sizes
        self._g, self._xg, self._xxg, self._inverse = _applicability()
        taps = np.exp(-(np.arange(kernels.BLUR + 1) ** 2) / (2 * _SIGMA**2))
        self._taps = (taps / (2 * taps.sum() - 1)).astype(np.float32)
        self._fades = [(_fade(w), _fade(h)) for h, w in sizes]
        self._equations = [np.empty((5, h, w), np.float32) for h, w in sizes]

    def expand(self, gray: U8) -> list[F32]:
        """Polynomial expansions, one ``float32 [5, h, w]`` a scale, of a frame ``uint8 [H, W]``.

        Each scale starts from the full-size frame, blurred with σ = (scale − 1) / 2 and resized.
        """
        image = gray.astype(np.float32)
        out = []
        for scale, (h, w) in zip(self.scales, self.sizes, strict=True):
            sigma = (scale - 1) / 2
            taps = max(round(sigma * 5) | 1, 3)
            level: Any = cv2.GaussianBlur(image, (taps, taps), sigma, sigmaY=sigma)
            if scale > 1:
                level = cv2.resize(level, (w, h), interpolation=cv2.INTER_LINEAR)
            planes = np.empty((5, h, w), np.float32)
            kernels.expand(level, self._g, self._xg, self._xxg, self._inverse, planes)
            out.append(planes)
        return out

    def flow(self, first: list[F32], second: list[F32]) -> list[F32]:
        """Median-filtered flow from ``first`` to ``second``, ``float32 [2, h, w]`` (x, y) a scale, in its pixels."""
        flows: list[F32] = []
        for level in reversed(range(len(self.scales))):
            h, w = self.sizes[level]
            flow = np.zeros((2, h, w), np.float32)
            if flows:
                for c in range(2):
                    flow[c] = cv2.resize(flows[-1][c], (w, h), interpolation=cv2.INTER_LINEAR)
                flow *= np.float32(STRIDE)
            equations = self._equations[level]
            for _ in range(_ITERATIONS):
                kernels.normal_equations(first[level], second[level], flow, *self._fades[level], equations)
                kernels.solve(equations, self._taps, flow)
            for c in range(2):
                flow[c] = cv2.medianBlur(flow[c], 5)
            flows.append(flow)
        return flows[::-1]


def _applicability() -> tuple[F32, F32, F32, F32]:
    """Half kernels g, x·g, x²·g ``[8]`` and the entries (1,1), (0,3), (3,3), (5,5) of the inverse Gram matrix."""
    x = np.arange(-kernels.POLY, kernels.POLY + 1, dtype=np.float64)
    g = np.exp(-(x**2) / (2 * _SIGMA**2))
    g = (g / g.sum()).astype(np.float32).astype(np.float64)
    yy, xx = np.meshgrid(x, x, indexing="ij")
    basis = np.stack([np.ones_like(xx), xx, yy, xx**2, yy**2, xx * yy])
    gram = np.einsum("ihw,jhw,hw->ij", basis, basis, np.outer(g, g))
    inverse = np.linalg.inv(gram)
    entries = np.array([inverse[1, 1], inverse[0, 3], inverse[3, 3], inverse[5, 5]], np.float32)
    half = g[kernels.POLY :]
    steps = x[kernels.POLY :]
    return half.astype(np.float32), (steps * half).astype(np.float32), (steps**2 * half).astype(np.float32), entries


def _fade(size: int) -> F32:
    """Weights along one axis that discount the five pixels next to each border."""
    weights = np.ones(size, np.float32)
    band = min(len(_FADE), size)
    weights[:band] *= _FADE[:band]
    weights[size - band :] *= _FADE[:band][::-1]
    return weights
