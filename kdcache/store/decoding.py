"""Decoding of quantised arrays at compiled speed: numpy alone rounds to float16 slower than a disk reads.

The results are those of numpy, bit for bit: one multiplication and one addition in float32, then rounding to the
nearest half-precision number, ties to even.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kdcache.motion.jit import cached_njit


@njit(inline="always")
def _half_bits(value: Any, bits: Any) -> Any:
    """The 15 lower bits of the half-precision number nearest to a float32 of these bits, finite there."""
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = (magnitude + np.uint32(0xFFF) + ((magnitude >> np.uint32(13)) & np.uint32(1)) - np.uint32(0x38000000)) >> (
        np.uint32(13)
    )
    subnormal = np.uint32(np.rint(abs(value) * np.float32(2.0**24)))
    return subnormal if magnitude < np.uint32(0x38800000) else normal


@cached_njit(nogil=True)
def scaled_rows(codes: Any, scale: Any, offset: Any, out: Any) -> None:
    """uint8 [n, m], float32 [n] twice → float32 [n × m]: channels first."""
    width = codes.shape[1]
    for i in range(codes.shape[0]):
        a, b = scale[i], offset[i]
        for j in range(width):
            out[i * width + j] = np.float32(np.float32(codes[i, j]) * a) + b


@cached_njit(nogil=True)
def scaled_columns(codes: Any, scale: Any, offset: Any, out: Any) -> None:
    """uint8 [n, m, c], float32 [n, c] twice → float32 [n × m × c]: channels last."""
    rows, width = codes.shape[1:]
    for i in range(codes.shape[0]):
        for k in range(rows):
            start = (i * rows + k) * width
            for j in range(width):
                out[start + j] = np.float32(np.float32(codes[i, k, j]) * scale[i, j]) + offset[i, j]


@cached_njit(nogil=True)
def as_half(values: Any, out: Any) -> None:
    """float32 [n] → bits of float16, uint16 [n]."""
    bits = values.view(np.uint32)
    for k in range(out.size):
        out[k] = np.uint16(((bits[k] >> np.uint32(16)) & np.uint32(0x8000)) | _half_bits(values[k], bits[k]))


@cached_njit(nogil=True)
def round_to_half(out: Any) -> None:
    """float32 [n], rounded in place to what float16 holds."""
    bits = out.view(np.uint32)
    for k in range(out.size):
        magnitude = bits[k] & np.uint32(0x7FFFFFFF)
        rounded = (bits[k] + np.uint32(0xFFF) + ((bits[k] >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
        small = np.rint(out[k] * np.float32(2.0**24)) * np.float32(2.0**-24)
        if magnitude < np.uint32(0x38800000):
            out[k] = small
        else:
            bits[k] = rounded


def decode(
    codes: NDArray[np.uint8],
    scale: NDArray[Any],
    offset: NDArray[Any],
    out: NDArray[Any],
    buffer: NDArray[np.float32] | None = None,
) -> None:
    """``codes × scale + offset`` as float16 numbers into ``out``, contiguous float16 or float32 of the codes' shape.

    ``buffer``, float32 of as many numbers, spares those who decode many arrays its allocation.
    """
    half = out.dtype != np.float32
    if half and buffer is None:
        buffer = np.empty(codes.size, np.float32)
    values = buffer if half else out.reshape(-1)
    assert values is not None
    last = codes.ndim  # what shares a scale lies before the axes from here on
    while last and scale.shape[last - 1] > 1:
        last -= 1
    inner = last if 0 < last < codes.ndim else codes.ndim
    while inner and scale.shape[inner - 1] == 1:
        inner -= 1
    outer, behind = codes.shape[:inner], codes.shape[last:] if last > inner else ()
    each = (np.broadcast_to(part.reshape(scale.shape[:inner] + behind), outer + behind) for part in (scale, offset))
    a, b = (np.array(part, np.float32) for part in each)  # copies: windows on packed bytes are not aligned
    if behind:
        count, width = math.prod(outer), math.prod(behind)
        scaled_columns(codes.reshape(count, -1, width), a.reshape(count, width), b.reshape(count, width), values)
    else:
        scaled_rows(codes.reshape(a.size, -1), a.ravel(), b.ravel(), values)
    if half:
        as_half(values[: codes.size], out.view(np.uint16).reshape(-1))
    else:
        round_to_half(values)
