"""Triton kernels of TV-L1: warp and median filter. Those of the iterations are in ``triton_iteration``.

Planes are [N, H, P], rows of P floats of which the first W are pixels: P is a multiple of 16, so that loads and stores
are aligned; no pixel depends on what lies behind them. Flow and dual variables exist twice, one copy to read while the
other is written; ``turns`` [2, N + 1] says which copy of either a pair has now.

A launch is for the pairs listed in ``pairs``; those that do not move any more return at once. The list may be filled up
with the number N, which never moves.
"""

# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kdcache.motion import median_network as network

TILE = {"TILE_Y": 8, "TILE_X": 64}
ROUNDED = {"enable_fp_fusion": False}  # each product and sum rounded, as OpenCV's are; fma where it has one
_compile: Any = triton.jit


@triton.jit
def _order(a, b):
    return tl.minimum(a, b), tl.maximum(a, b)


_sort3 = _compile(network.bind(network.sort3, order=_order, tl=tl))
_sort5 = _compile(network.bind(network.sort5, order=_order, tl=tl))
_median9 = _compile(network.bind(network.median9, sort3=_sort3, tl=tl))
_median25 = _compile(network.bind(network.median25, order=_order, sort5=_sort5, tl=tl))


@triton.jit
def _pixels(width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Rows and columns of this program's tile."""
    across = tl.cdiv(width, TILE_X)
    y = (tl.program_id(0) // across) * TILE_Y + tl.arange(0, TILE_Y)[:, None]
    x = (tl.program_id(0) % across) * TILE_X + tl.arange(0, TILE_X)[None, :]
    return y, x


@triton.jit
def turn_flow(pairs, moving, turns):
    """After a median filter: the other copy holds the flow."""
    pair = tl.load(pairs + tl.program_id(0))
    if tl.load(moving + pair) != 0:
        tl.store(turns + pair, 1 - tl.load(turns + pair))


@triton.jit
def _row5(image, y, x, dy: tl.constexpr, height, width, pitch):
    """Five values along the row ``dy`` away, the border replicated."""
    row = image + tl.minimum(tl.maximum(y + dy, 0), height - 1) * pitch
    last = width - 1
    return (
        tl.load(row + tl.minimum(tl.maximum(x - 2, 0), last)),
        tl.load(row + tl.minimum(tl.maximum(x - 1, 0), last)),
        tl.load(row + tl.minimum(x, last)),
        tl.load(row + tl.minimum(x + 1, last)),
        tl.load(row + tl.minimum(x + 2, last)),
    )


@triton.jit
def smooth(
    uv, pairs, moving, turns, plane, height, width, pitch,
    SIZE: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Median of the flow of the listed pairs that move, component by component, from one copy to the other."""
    pair = tl.load(pairs + tl.program_id(1))
    if tl.load(moving + pair) != 0:
        turn = tl.load(turns + pair)
        y, x = _pixels(pitch, TILE_Y, TILE_X)
        base = pair.to(tl.int64) * height * pitch + tl.program_id(2) * plane
        image = uv + turn * 2 * plane + base
        a, b, c = (
            _row5(image, y, x, -1, height, width, pitch),
            _row5(image, y, x, 0, height, width, pitch),
            _row5(image, y, x, 1, height, width, pitch),
        )
        if SIZE == 5:
            d, e = _row5(image, y, x, -2, height, width, pitch), _row5(image, y, x, 2, height, width, pitch)
            f, g = _sort5((d[0], a[0], b[0], c[0], e[0])), _sort5((d[1], a[1], b[1], c[1], e[1]))
            h, i = _sort5((d[2], a[2], b[2], c[2], e[2])), _sort5((d[3], a[3], b[3], c[3], e[3]))
            j = _sort5((d[4], a[4], b[4], c[4], e[4]))
            value = _median25(
                (f[0], g[0], h[0], i[0], j[0]),
                (f[1], g[1], h[1], i[1], j[1]),
                (f[2], g[2], h[2], i[2], j[2]),
                (f[3], g[3], h[3], i[3], j[3]),
                (f[4], g[4], h[4], i[4], j[4]),
            )
        else:
            f, g, h = _sort3((a[1], b[1], c[1])), _sort3((a[2], b[2], c[2])), _sort3((a[3], b[3], c[3]))
            value = _median9((f[0], g[0], h[0]), (f[1], g[1], h[1]), (f[2], g[2], h[2]))
        out = uv + (1 - turn) * 2 * plane + base
        tl.store(out + y * pitch + x, value, mask=(y < height) & (x < pitch))


@triton.jit
def _weights(share):
    """Bicubic weights of the four samples around a position ``share`` past the second."""
    rest, square = 1.0 - share, share * share
    first, fourth = -0.75 * (share * (rest * rest)), -0.75 * (square * rest)
    second = tl.fma(square, tl.fma(share, 1.25, -2.25), 1.0)
    return first, second, ((1.0 - first) - second) - fourth, fourth


@triton.jit
def _line(image, y, x, weights, inside, height, width):
    """Weighted sum of four texels of a row from column ``x`` on, zero outside the image."""
    within = inside & (y >= 0) & (y < height)
    at = image + y * width + x
    total = weights[0] * tl.load(at, mask=within & (x >= 0) & (x < width), other=0.0)
    total = tl.fma(weights[1], tl.load(at + 1, mask=within & (x + 1 >= 0) & (x + 1 < width), other=0.0), total)
    total = tl.fma(weights[2], tl.load(at + 2, mask=within & (x + 2 >= 0) & (x + 2 < width), other=0.0), total)
    return tl.fma(weights[3], tl.load(at + 3, mask=within & (x + 3 >= 0) & (x + 3 < width), other=0.0), total)


@triton.jit
def _sample(image, y, x, down, across, inside, height, width):
    total = down[0] * _line(image, y, x, across, inside, height, width)
    total = tl.fma(down[1], _line(image, y + 1, x, across, inside, height, width), total)
    total = tl.fma(down[2], _line(image, y + 2, x, across, inside, height, width), total)
    return tl.fma(down[3], _line(image, y + 3, x, across, inside, height, width), total)


@triton.jit
def linearise(
    uv, turns, first, texture, data, dense, plane, height, width, pitch, TILE_Y: tl.constexpr, TILE_X: tl.constexpr
):  # fmt: skip
    """Warp the second frames and their derivatives by the flow: ``first`` [N, H, W], ``texture`` [3, N, H, W], planes
    of ``dense`` numbers, into ``data``: both derivatives, and what does not change with the flow."""
    pair = tl.program_id(1)
    y, x = _pixels(pitch, TILE_Y, TILE_X)
    inside = (y < height) & (x < width)
    at = pair.to(tl.int64) * height * pitch + y * pitch + x
    flow = uv + tl.load(turns + pair) * 2 * plane
    u = tl.load(flow + at, mask=inside, other=0.0)
    v = tl.load(flow + plane + at, mask=inside, other=0.0)
    place_x = tl.minimum(tl.maximum(x + u, -3.0), width + 1.0)
    place_y = tl.minimum(tl.maximum(y + v, -3.0), height + 1.0)
    column, row = tl.floor(place_x), tl.floor(place_y)
    across, down = _weights(place_x - column), _weights(place_y - row)
    column, row = column.to(tl.int32) - 1, row.to(tl.int32) - 1
    base = pair.to(tl.int64) * height * width
    warped = _sample(texture + base, row, column, down, across, inside, height, width)
    gx = _sample(texture + dense + base, row, column, down, across, inside, height, width)
    gy = _sample(texture + 2 * dense + base, row, column, down, across, inside, height, width)
    tl.store(data + at, gx, mask=inside)
    tl.store(data + plane + at, gy, mask=inside)
    constant = warped - gx * u - gy * v - tl.load(first + base + y * width + x, mask=inside, other=0.0)
    tl.store(data + 2 * plane + at, constant, mask=inside)
