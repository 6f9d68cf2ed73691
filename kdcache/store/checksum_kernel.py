"""The machine code behind ``kdcache.store.checksum``: as fast as bytes come out of the processor's caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdcache.motion.jit import cached_njit
from kdcache.store.layout import SPLITMIX

_FIRST, _SECOND = SPLITMIX[1:3]
_G, _S3 = np.uint64(SPLITMIX[0]), np.uint64(SPLITMIX[3])
_S1, _M1, _S2, _M2 = (np.uint64(number) for number in (*_FIRST, *_SECOND))


@cached_njit(nogil=True)
def sum_rows(rows: Any, chosen: Any, out: Any) -> None:
    """uint8 [n, m], int64 [k] rows of it → uint64 [k]; on little-endian processors, which are all that numba has."""
    size = rows.shape[1]
    whole = size // 8
    for k in range(chosen.size):
        r = chosen[k]
        words = rows[r, : whole * 8].view(np.uint64)
        total = np.uint64(size)
        for i in range(whole):
            z = words[i] + np.uint64(i) * _G
            z = (z ^ (z >> _S1)) * _M1
            z = (z ^ (z >> _S2)) * _M2
            total += z ^ (z >> _S3)
        if size > whole * 8:
            last = np.uint64(0)
            for j in range(whole * 8, size):
                last |= np.uint64(rows[r, j]) << np.uint64(8 * (j - whole * 8))
            z = last + np.uint64(whole) * _G
            z = (z ^ (z >> _S1)) * _M1
            z = (z ^ (z >> _S2)) * _M2
            total += z ^ (z >> _S3)
        out[k] = total
