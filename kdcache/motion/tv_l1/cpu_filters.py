"""Compiled image operations of TV-L1: pyramid resize, bicubic warp (the median filter is ``kdcache.motion.median``).

Planes are flat float32. Each operation gives, bit for bit, what OpenCV 5 gives on float32 images (on x86 with
FMA): ``resize`` INTER_LINEAR, and ``remap`` INTER_CUBIC with zero outside, whose coefficients are no longer
quantised as they were in OpenCV 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion import simd as lanes
from kdcache.motion.loops import stretch
from kdcache.motion.tv_l1.cpu_update import pitch
from kdcache.motion.tv_l1.jit import compiled, fma

Plane = NDArray[np.float32]
Places = NDArray[np.int32]
MARGIN = 4  # texels of zero around a warped image, enough for every tap of a clamped position
_CUBIC = np.float32(-0.75)  # OpenCV's bicubic coefficient


@compiled
def _taps(count: int, size: int, scale: float, first: Places, share: Plane) -> None:
    """For each resized sample the one that it lies behind, and how far on the way to the next.

    Past the last sample OpenCV stands at the end of the last step when it shrinks, at its own beginning when
    it enlarges: the same value, differently rounded.
    """
    last = size - 2 if scale > 1 else size - 1
    for k in range(count):
        exact = (k + 0.5) * scale - 0.5
        first[k] = min(max(math.floor(exact), 0), last)
        share[k] = min(max(exact - first[k], 0.0), 1.0)


@compiled
def resize(
    source: Plane,
    start: int,
    size: tuple[int, int],
    stride: int,
    out: Plane,
    out_start: int,
    out_size: tuple[int, int],
    out_stride: int,
    scale: float,
    wide: Plane,
    share: Plane,
    at: Places,
) -> None:
    """Bilinear resize of the plane at ``source[start:]`` into ``out[out_start:]``.

    ``scale`` is the source's size over the target's, or 0 to take it from the sizes. Scratch: ``wide`` for the
    source's height times the target's width, ``share`` and ``at`` for the longer side of the target.
    """
    height, width = out_size
    _taps(width, size[1], scale if scale > 0 else 1.0 / (width / size[1]), at, share)
    for y in range(size[0]):
        line, target = start + y * stride, y * width
        for x in range(width):
            value, after = source[line + at[x]], source[line + min(at[x] + 1, size[1] - 1)]
            wide[target + x] = fma(after - value, share[x], value)
    _taps(height, size[0], scale if scale > 0 else 1.0 / (height / size[0]), at, share)
    for y in range(height):
        above, below = at[y] * width, min(at[y] + 1, size[0] - 1) * width
        _between((wide, out), 0, width, (above, below, out_start + y * out_stride), (share[y],))


@stretch
def _between(planes: Any, steps: Any, reals: Any) -> None:
    wide, out = planes
    value = wide[steps[0]]
    out[steps[2]] = lanes.fma(wide[steps[1]] - value, reals[0], value)


@compiled
def make_texture(image: Plane, start: int, height: int, width: int, texture: Plane) -> None:
    """Interleave an image with its x and y derivatives (and a channel of zero) inside a margin of zeros.

    ``image[start:]`` has no padding. Derivatives are half the difference of the two neighbours, at the border
    half the difference of pixel and neighbour.
    """
    span = width + 2 * MARGIN
    half = np.float32(0.5)
    for at in range((height + 2 * MARGIN) * span * 4):
        texture[at] = 0
    for y in range(height):
        row = start + y * width
        above, below = start + max(y - 1, 0) * width, start + min(y + 1, height - 1) * width
        for x in range(width):
            at = ((y + MARGIN) * span + x + MARGIN) * 4
            texture[at] = image[row + x]
            texture[at + 1] = half * (image[row + min(x + 1, width - 1)] - image[row + max(x - 1, 0)])
            texture[at + 2] = half * (image[below + x] - image[above + x])


def _weights(share: Any) -> Any:
    """Bicubic weights of the four samples around a position ``share`` past the second, rounded as OpenCV's."""
    rest, square = 1 - share, share * share
    first = _CUBIC * (share * (rest * rest))
    second = lanes.fma(square, lanes.fma(share, _CUBIC + 2, -(_CUBIC + 3)), 1)
    fourth = _CUBIC * (square * rest)
    return first, second, ((1 - first) - second) - fourth, fourth


def _place(position: Any, size: Any) -> Any:
    """First texel of a warped position (margin included) and its fraction; clamped to where all is zero."""
    position = lanes.order(lanes.order(position, -3)[1], size + 1)[0]
    below = lanes.floor(position)
    return lanes.whole(below + (MARGIN - 1)), position - below


@stretch
def _positions(planes: Any, steps: Any, reals: Any) -> None:
    u, v, numbers, at, *weights = planes
    y, height, width = reals
    column, across = _place(numbers[0] + u[steps[0]], width)
    row, down = _place(y + v[steps[0]], height)
    at[0] = (row * lanes.whole(width + 2 * MARGIN) + column) * 4
    for plane, values in zip(weights, (*_weights(across), *_weights(down)), strict=True):
        plane[0] = values


@stretch
def _differences(planes: Any, steps: Any, reals: Any) -> None:
    image, warped, u, v, gx, gy, constant, square = planes
    here, first = steps[:2]
    a, b = gx[here], gy[here]
    constant[here] = ((warped[0] - a * u[here]) - b * v[here]) - image[first]
    square[here] = a * a + b * b


@compiled
def _sample(texture: Plane, span: int, rows: Plane, at: Places, gx: Plane, gy: Plane, start: int, width: int) -> None:
    for x in range(width):
        across = (rows[0, x], rows[1, x], rows[2, x], rows[3, x])
        down = (rows[4, x], rows[5, x], rows[6, x], rows[7, x])
        rows[8, x], gx[start + x], gy[start + x] = lanes.bicubic(texture, at[x], span * 4, across, down)


@compiled
def linearise(
    image: Plane,
    start: int,
    texture: Plane,
    height: int,
    width: int,
    u: Plane,
    v: Plane,
    data: tuple[Plane, Plane, Plane, Plane],
    rows: Plane,
    at: Places,
) -> None:
    """Warp the second frame by the flow and linearise the brightness difference around it.

    Fills ``data``, planes laid out as the flow's: the warped derivatives in x and y, the part of the
    difference that does not depend on the flow, and |∇I|². Scratch: ``rows`` [≥ 10, ≥ width], ``at``.
    """
    gx, gy, constant, square = data
    a, b, c, d, e, f, g, h = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    warped, numbers = rows[8], rows[9]
    for x in range(width):
        numbers[x] = x
    sizes = (np.float32(height), np.float32(width))
    for y in range(height):
        here = (y + 1) * pitch(width)
        _positions((u, v, numbers, at, a, b, c, d, e, f, g, h), 0, width, (here,), (np.float32(y), *sizes))
        _sample(texture, width + 2 * MARGIN, rows, at, gx, gy, here, width)
        _differences((image, warped, u, v, gx, gy, constant, square), 0, width, (here, start + y * width), ())
