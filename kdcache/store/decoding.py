"""Decoding of quantised arrays at compiled speed: numpy alone rounds to float16 slower than a disk reads.

The results are those of numpy, bit for bit: one multiplication and one addition in float32, then rounding to the
nearest half-precision number, ties to even.
"""

from __future__ import annotations

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
def decode_half(codes: Any, scale: Any, offset: Any, buffer: Any, out: Any) -> None:
    """uint8 [n, m], float32 [n] twice → bits of float16, uint16 [n, m]; ``buffer`` is float32 [n × m]."""
    width = codes.shape[1]
    for i in range(codes.shape[0]):
        a, b = scale[i], offset[i]
        for j in range(width):
            buffer[i * width + j] = np.float32(np.float32(codes[i, j]) * a) + b
    bits, flat = buffer.view(np.uint32), out.reshape(-1)
    for k in range(flat.size):
        flat[k] = np.uint16(((bits[k] >> np.uint32(16)) & np.uint32(0x8000)) | _half_bits(buffer[k], bits[k]))


@cached_njit(nogil=True)
def decode_single(codes: Any, scale: Any, offset: Any, out: Any) -> None:
    """uint8 [n, m], float32 [n] twice → float32 [n × m], rounded to what float16 holds."""
    width = codes.shape[1]
    for i in range(codes.shape[0]):
        a, b = scale[i], offset[i]
        for j in range(width):
            out[i * width + j] = np.float32(np.float32(codes[i, j]) * a) + b
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
    inner = codes.ndim
    while inner and scale.shape[inner - 1] == 1:
        inner -= 1
    outer = codes.shape[:inner]
    each = (np.broadcast_to(part.reshape(scale.shape[:inner]), outer) for part in (scale, offset))
    a, b = (np.array(part, np.float32).ravel() for part in each)  # copies: windows on packed bytes are not aligned
    rows = codes.reshape(len(a), -1)
    if out.dtype == np.float32:
        decode_single(rows, a, b, out.reshape(-1))
    else:
        buffer = np.empty(rows.size, np.float32) if buffer is None else buffer
        decode_half(rows, a, b, buffer, out.view(np.uint16).reshape(rows.shape))
