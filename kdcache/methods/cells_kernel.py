"""The machine code behind ``kdcache.methods.heads.cells`` on a CPU: each map is read once."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdcache.motion.jit import cached_njit

_HALF = np.float32(0.5)


@cached_njit(nogil=True)
def average_cells(x: Any, out: Any) -> None:
    """float32 [channels, l, h, w] → [channels, ⌈l/2⌉, ⌈h/2⌉, ⌈w/2⌉]; sums in the order of time, height, width."""
    channels, times, height, width = x.shape
    line = np.empty(width, np.float32)
    for c in range(channels):
        for t in range(out.shape[1]):
            for h in range(out.shape[2]):
                a = x[c, 2 * t, 2 * h]
                pair, below = 2 * t + 1 < times, 2 * h + 1 < height
                if pair and below:
                    b, d, e = x[c, 2 * t + 1, 2 * h], x[c, 2 * t, 2 * h + 1], x[c, 2 * t + 1, 2 * h + 1]
                    for w in range(width):
                        line[w] = ((a[w] + b[w]) * _HALF + (d[w] + e[w]) * _HALF) * _HALF
                elif pair or below:
                    b = x[c, 2 * t + 1, 2 * h] if pair else x[c, 2 * t, 2 * h + 1]
                    for w in range(width):
                        line[w] = (a[w] + b[w]) * _HALF
                else:
                    line[:] = a
                for w in range(width // 2):
                    out[c, t, h, w] = (line[2 * w] + line[2 * w + 1]) * _HALF
                if width % 2:
                    out[c, t, h, width // 2] = line[width - 1]
