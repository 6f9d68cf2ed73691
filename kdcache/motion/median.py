"""Median filters of planes of float32, compiled: what OpenCV's ``medianBlur`` gives, the border replicated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion import median_network as network
from kdcache.motion import simd as lanes
from kdcache.motion.jit import cached_njit
from kdcache.motion.loops import stretch

Plane = NDArray[np.float32]

_sort3 = network.bind(network.sort3, order=lanes.order)
_sort5 = network.bind(network.sort5, order=lanes.order)
_median9 = network.bind(network.median9, sort3=_sort3)
_median25 = network.bind(network.median25, order=lanes.order, sort5=_sort5)


@cached_njit(nogil=True)
def median5(plane: Plane, first: int, stride: int, size: tuple[int, int], rows: Plane, out: Plane) -> None:
    """5 × 5 median of a flat plane of ``size`` height, width, whose rows begin ``stride`` apart from ``first`` on.

    ``out`` is laid out alike and not the same; ``rows`` is scratch [≥ 5, ≥ width + 4].
    """
    height, width = size
    a, b, c, d, e = rows[0], rows[1], rows[2], rows[3], rows[4]
    for y in range(height):
        starts = (
            _row(y - 2, height, first, stride), _row(y - 1, height, first, stride), _row(y, height, first, stride),
            _row(y + 1, height, first, stride), _row(y + 2, height, first, stride),
        )  # fmt: skip
        _columns5((plane, a, b, c, d, e), 0, width, starts, ())
        _replicate(rows, 5, 2, width)
        _windows5((a, b, c, d, e, out), 0, width, (first + y * stride,), ())


@cached_njit(nogil=True)
def median3(plane: Plane, first: int, stride: int, size: tuple[int, int], rows: Plane, out: Plane) -> None:
    """3 × 3 median, as :func:`median5`; ``rows`` is scratch [≥ 3, ≥ width + 2]."""
    height, width = size
    a, b, c = rows[0], rows[1], rows[2]
    for y in range(height):
        starts = (
            _row(y - 1, height, first, stride), _row(y, height, first, stride), _row(y + 1, height, first, stride)
        )  # fmt: skip
        _columns3((plane, a, b, c), 0, width, starts, ())
        _replicate(rows, 3, 1, width)
        _windows3((a, b, c, out), 0, width, (first + y * stride,), ())


@stretch
def _columns5(planes: Any, steps: Any, reals: Any) -> None:
    plane, *rows = planes
    for row, values in zip(rows, _sort5([plane[step] for step in steps[:5]]), strict=True):
        row[2] = values


@stretch
def _windows5(planes: Any, steps: Any, reals: Any) -> None:
    *rows, out = planes
    out[steps[0]] = _median25(*([row[x] for x in range(5)] for row in rows))


@stretch
def _columns3(planes: Any, steps: Any, reals: Any) -> None:
    plane, *rows = planes
    for row, values in zip(rows, _sort3([plane[step] for step in steps[:3]]), strict=True):
        row[1] = values


@stretch
def _windows3(planes: Any, steps: Any, reals: Any) -> None:
    *rows, out = planes
    out[steps[0]] = _median9(*([row[x] for x in range(3)] for row in rows))


@cached_njit(nogil=True)
def _row(y: int, height: int, first: int, stride: int) -> int:
    """Where row ``y`` begins; the border row where ``y`` lies outside."""
    return first + min(max(y, 0), height - 1) * stride


@cached_njit(nogil=True)
def _replicate(rows: Plane, count: int, reach: int, width: int) -> None:
    for row in range(count):
        for x in range(reach):
            rows[row, x], rows[row, reach + width + x] = rows[row, reach], rows[row, reach + width - 1]
