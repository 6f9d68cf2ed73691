"""Checksums of cached bytes at the speed of memory, for checking them when they are read.

The checksum of some bytes is a sum modulo 2⁶⁴: their number, and ``mix(word + i × 0x9E3779B97F4A7C15)`` for the i-th
word of eight bytes (little-endian, the last one filled up with zeros), where ``mix`` is the output function of
SplitMix64 (Steele, Lea and Flood 2014). As ``mix`` is a bijection, a change within one word is always found; any other
but for one in 2⁶⁴, unless it was made to deceive: that is what the SHA-256 of ``kdcache verify`` is for. A reference
in plain Python stands in ``kdcache.store``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.store.layout import SPLITMIX

_GAMMA, _FIRST, _SECOND, _SHIFT = SPLITMIX
_MASK = 2**64 - 1
_BLOCK = 4096  # words at once: they stay in the processor's first cache
_STEPS = np.arange(_BLOCK, dtype=np.uint64) * np.uint64(_GAMMA)
_PATIENCE = 64 * 2**20  # bytes that numpy sums up before importing numba, which takes longer, pays
_summed = 0


def checksums(rows: NDArray[np.uint8], chosen: Sequence[int] | None = None) -> NDArray[np.int64]:
    """The checksum of each row of bytes, or of the chosen ones, uint8 [n, m], C-contiguous → int64 [n]."""
    global _summed
    which = np.arange(len(rows)) if chosen is None else np.array(chosen, np.int64)
    if "numba" not in sys.modules and _summed < _PATIENCE:
        _summed += len(which) * rows.shape[1]
        return np.array([_with_numpy(rows[i]) for i in which], np.uint64).view(np.int64)
    from kdcache.store.checksum_kernel import sum_rows

    out = np.empty(len(which), np.uint64)
    sum_rows(rows if rows.flags.writeable else rows.copy(), which, out)  # one machine code serves all
    return out.view(np.int64)


def _with_numpy(row: NDArray[np.uint8]) -> int:
    """As the kernel, without anything to compile or import."""
    filled = np.zeros(-(-row.size // 8) * 8, np.uint8)  # aligned, and with whole words
    filled[: row.size] = row
    words: NDArray[Any] = filled.view("<u8")
    total = row.size
    for start in range(0, words.size, _BLOCK):
        z = words[start : start + _BLOCK]
        z = z + _STEPS[: z.size]
        z += np.uint64(start * _GAMMA & _MASK)
        for shift, factor in (_FIRST, _SECOND):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(_SHIFT)
        total += int(z.sum())
    return total & _MASK
