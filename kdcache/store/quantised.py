"""Feature arrays as bytes: numbers that share a scale and an offset are stored as ``round((x − offset) / scale)``.

Views and levels of progress never share: each view can be read by itself, and no level knows anything of later ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIELD = "quantised"  # of a recipe, whose value says what shares a scale; and the group of a shard's tables
SCALES = ("scale", "offset", "error")  # the tables of a stream
STEPS = 255
READ_DTYPE = np.dtype(np.float16)
"""What is read of quantised arrays."""


@dataclass(frozen=True)
class Quantised:
    """One clip of a stream as bytes; decoded it is ``codes × scale + offset``."""

    codes: NDArray[np.uint8]
    """[V, …]."""
    scale: NDArray[np.float32]
    """Of as many axes as the codes; 1 along the axes whose numbers share it."""
    offset: NDArray[np.float32]
    """As ``scale``; the smallest of the numbers that share it."""
    error: float
    """Norm of what decoding changes, over the norm of what was quantised."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return self.codes.nbytes + self.scale.nbytes + self.offset.nbytes

    def decoded(self) -> NDArray[np.float16]:
        """The array, float16."""
        from kdcache.store.decoding import decode  # brings numba, which other streams do without

        out = np.empty(self.shape, READ_DTYPE)
        decode(self.codes, self.scale, self.offset, out)
        return out


def quantise(array: NDArray[np.float32], shared: Sequence[int]) -> Quantised:
    """Bring an array to bytes.

    Args:
        array: float32 [V, …], finite and within what float16 holds.
        shared: axes along which all numbers have one scale and one offset.

    Returns:
        Codes from 0 to 255. Numbers that are all equal come back exactly, and zeros where no number that shares their
        scale is below 0.
    """
    axes = tuple(shared)
    low, high = array.min(axis=axes, keepdims=True), array.max(axis=axes, keepdims=True)
    scale = ((high - low) / np.float32(STEPS)).astype(np.float32)
    steps = (array - low) / np.where(scale > 0, scale, np.float32(1))
    codes = np.clip(np.rint(steps), 0, STEPS).astype(np.uint8)
    kept = Quantised(codes, scale, low, 0.0)
    norm = float(np.linalg.norm(array.astype(np.float64).ravel()))
    changed = float(np.linalg.norm((kept.decoded().astype(np.float64) - array).ravel()))
    return Quantised(codes, scale, low, changed / norm if norm else 0.0)


def read_dtype(recipe: Mapping[str, Any]) -> np.dtype[Any]:
    """What reading gives of a stream: its stored type, float16 where it is quantised."""
    return READ_DTYPE if FIELD in recipe else np.dtype(recipe["dtype"])


@dataclass(frozen=True)
class Packing:
    """Where scales, offsets and codes of one view lie in one row of bytes, in this order."""

    shape: tuple[int, ...]
    """Of the codes of a view."""
    scale_shape: tuple[int, ...]
    """Of the scales of a view, and of the offsets."""

    @property
    def scale_bytes(self) -> int:
        """Of the scales alone."""
        return 4 * math.prod(self.scale_shape)

    @property
    def nbytes(self) -> int:
        """Of a view."""
        return 2 * self.scale_bytes + math.prod(self.shape)

    def parts(self, packed: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint8]]:
        """Scale, offset and codes of a view as windows on its bytes [nbytes]."""
        end = self.scale_bytes
        scale, offset = (packed[a : a + end].view("<f4").reshape(self.scale_shape) for a in (0, end))
        return scale, offset, packed[2 * end :].reshape(self.shape)
