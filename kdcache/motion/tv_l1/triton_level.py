"""A level of TV-L1 in three Triton kernels: warp, median filter, and the fused primal-dual iteration.

Planes are [N, H, W], contiguous. Flow and dual variables exist twice, one copy to read while the other is
written, so that an iteration is one kernel: it evaluates the flow at a pixel and at its right and lower
neighbours (cheap: the kernel is bound by memory) and the dual variables from those three.

Each program leaves the squared change of its tile. The next launch adds up the tiles of a pair in a fixed
order: above the threshold it goes on; otherwise it copies the state across once, marks that by a negative
change, and later launches return at once. The host never looks.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdcache.motion.tv_l1 import median_network as network
from kdcache.motion.tv_l1.params import TVL1Params

_TILE = {"TILE_Y": 8, "TILE_X": 64}
_ROUNDED = {"enable_fp_fusion": False}  # each product and sum rounded, as OpenCV's are; fma where it has one
_compile: Any = triton.jit


@triton.jit
def _order(a, b):
    return tl.minimum(a, b), tl.maximum(a, b)


_sort3 = _compile(network.bind(network.sort3, order=_order, tl=tl))
_sort5 = _compile(network.bind(network.sort5, order=_order, tl=tl))
_median9 = _compile(network.bind(network.median9, sort3=_sort3, tl=tl))
_median25 = _compile(network.bind(network.median25, order=_order, sort5=_sort5, tl=tl))


@triton.jit
def _moving(changes, pair, tiles, threshold, TILES: tl.constexpr):
    """Whether a pair's last iteration moved it by more than the threshold, and whether it was settled before."""
    numbers = tl.arange(0, TILES)
    total = tl.sum(tl.load(changes + pair * tiles + numbers, mask=numbers < tiles, other=0.0))
    return total > threshold, total < 0


@triton.jit
def _pixels(width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Rows and columns of this program's tile."""
    across = tl.cdiv(width, TILE_X)
    y = (tl.program_id(0) // across) * TILE_Y + tl.arange(0, TILE_Y)[:, None]
    x = (tl.program_id(0) % across) * TILE_X + tl.arange(0, TILE_X)[None, :]
    return y, x


@triton.jit
def _primal(state, data, plane, base, y, x, height, width, limit, theta):
    """New flow at some pixels, and its squared change."""
    inside = (y < height) & (x < width)
    at = base + y * width + x
    u = tl.load(state + at, mask=inside, other=0.0)
    v = tl.load(state + plane + at, mask=inside, other=0.0)
    gx = tl.load(data + at, mask=inside, other=0.0)
    gy = tl.load(data + plane + at, mask=inside, other=0.0)
    constant = tl.load(data + 2 * plane + at, mask=inside, other=0.0)
    square = tl.load(data + 3 * plane + at, mask=inside, other=1.0)
    left, above = inside & (x > 0), inside & (y > 0)
    p = state + 2 * plane
    div_u = tl.load(p + at, mask=inside, other=0.0) - tl.load(p + at - 1, mask=left, other=0.0)
    p = p + plane
    div_u += tl.load(p + at, mask=inside, other=0.0) - tl.load(p + at - width, mask=above, other=0.0)
    p = p + plane
    div_v = tl.load(p + at, mask=inside, other=0.0) - tl.load(p + at - 1, mask=left, other=0.0)
    p = p + plane
    div_v += tl.load(p + at, mask=inside, other=0.0) - tl.load(p + at - width, mask=above, other=0.0)
    rho = constant + (gx * u + gy * v)
    step = tl.where(square > 1.1920929e-07, tl.div_rn(-rho, square), 0.0)
    step = tl.where(rho > limit * square, -limit, step)
    step = tl.where(rho < -limit * square, limit, step)
    new_u = (u + step * gx) + theta * div_u
    new_v = (v + step * gy) + theta * div_v
    return new_u, new_v, (new_u - u) * (new_u - u) + (new_v - v) * (new_v - v)


@triton.jit
def _dual(p, out, at, inside, slope, norm):
    tl.store(out + at, tl.div_rn(tl.load(p + at, mask=inside, other=0.0) + slope, norm), mask=inside)


@triton.jit
def _iterate(
    state,
    out,
    data,
    changes,
    new_changes,
    plane,
    height,
    width,
    tiles,
    threshold,
    limit,
    theta,
    pace,
    TILES: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """One iteration of every pair that still moves, from ``state`` [6, N, H, W] to ``out``."""
    pair = tl.program_id(1)
    moving, settled = _moving(changes, pair, tiles, threshold, TILES)
    y, x = _pixels(width, TILE_Y, TILE_X)
    inside = (y < height) & (x < width)
    base = pair.to(tl.int64) * height * width
    at = base + y * width + x
    change = -1.0
    if moving:
        u, v, moved = _primal(state, data, plane, base, y, x, height, width, limit, theta)
        u_right, v_right, _ = _primal(state, data, plane, base, y, x + 1, height, width, limit, theta)
        u_below, v_below, _ = _primal(state, data, plane, base, y + 1, x, height, width, limit, theta)
        ux, uy = tl.where(x + 1 < width, u_right - u, 0.0), tl.where(y + 1 < height, u_below - u, 0.0)
        vx, vy = tl.where(x + 1 < width, v_right - v, 0.0), tl.where(y + 1 < height, v_below - v, 0.0)
        norm_u, norm_v = (
            1.0 + pace * tl.sqrt_rn(ux * ux + uy * uy),
            1.0 + pace * tl.sqrt_rn(vx * vx + vy * vy),
        )
        tl.store(out + at, u, mask=inside)
        tl.store(out + plane + at, v, mask=inside)
        _dual(state + 2 * plane, out + 2 * plane, at, inside, pace * ux, norm_u)
        _dual(state + 3 * plane, out + 3 * plane, at, inside, pace * uy, norm_u)
        _dual(state + 4 * plane, out + 4 * plane, at, inside, pace * vx, norm_v)
        _dual(state + 5 * plane, out + 5 * plane, at, inside, pace * vy, norm_v)
        change = tl.sum(tl.where(inside, moved, 0.0))
    elif not settled:
        for k in range(6):
            tl.store(out + k * plane + at, tl.load(state + k * plane + at, mask=inside, other=0.0), mask=inside)
    tl.store(new_changes + pair * tiles + tl.program_id(0), change)


@triton.jit
def _row5(image, y, x, dy: tl.constexpr, height, width):
    """Five values along the row ``dy`` away, the border replicated."""
    row = image + tl.minimum(tl.maximum(y + dy, 0), height - 1) * width
    last = width - 1
    return (
        tl.load(row + tl.minimum(tl.maximum(x - 2, 0), last)),
        tl.load(row + tl.minimum(tl.maximum(x - 1, 0), last)),
        tl.load(row + tl.minimum(x, last)),
        tl.load(row + tl.minimum(x + 1, last)),
        tl.load(row + tl.minimum(x + 2, last)),
    )


@triton.jit
def _smooth(
    state, out, changes, plane, height, width, tiles, threshold,
    SIZE: tl.constexpr, TILES: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Median of the flow of every pair that still moves, of the others a copy; component by component."""
    pair = tl.program_id(1)
    moving, _ = _moving(changes, pair, tiles, threshold, TILES)
    y, x = _pixels(width, TILE_Y, TILE_X)
    inside = (y < height) & (x < width)
    base = pair.to(tl.int64) * height * width + tl.program_id(2) * plane
    image, at = state + base, y * width + x
    value = tl.load(image + at, mask=inside, other=0.0)
    if moving:
        a, b, c = (
            _row5(image, y, x, -1, height, width),
            _row5(image, y, x, 0, height, width),
            _row5(image, y, x, 1, height, width),
        )
        if SIZE == 5:
            d, e = _row5(image, y, x, -2, height, width), _row5(image, y, x, 2, height, width)
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
    tl.store(out + base + at, value, mask=inside)


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
def _linearise(
    state, first, texture, data, plane, height, width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr
):  # fmt: skip
    """Warp the second frames and their derivatives by the flow; fill the four planes of ``data``."""
    pair = tl.program_id(1)
    y, x = _pixels(width, TILE_Y, TILE_X)
    inside = (y < height) & (x < width)
    base = pair.to(tl.int64) * height * width
    at = base + y * width + x
    u = tl.load(state + at, mask=inside, other=0.0)
    v = tl.load(state + plane + at, mask=inside, other=0.0)
    place_x = tl.minimum(tl.maximum(x + u, -3.0), width + 1.0)
    place_y = tl.minimum(tl.maximum(y + v, -3.0), height + 1.0)
    column, row = tl.floor(place_x), tl.floor(place_y)
    across, down = _weights(place_x - column), _weights(place_y - row)
    column, row = column.to(tl.int32) - 1, row.to(tl.int32) - 1
    warped = _sample(texture + base, row, column, down, across, inside, height, width)
    gx = _sample(texture + plane + base, row, column, down, across, inside, height, width)
    gy = _sample(texture + 2 * plane + base, row, column, down, across, inside, height, width)
    tl.store(data + at, gx, mask=inside)
    tl.store(data + plane + at, gy, mask=inside)
    constant = warped - gx * u - gy * v - tl.load(first + at, mask=inside, other=0.0)
    tl.store(data + 2 * plane + at, constant, mask=inside)
    tl.store(data + 3 * plane + at, gx * gx + gy * gy, mask=inside)


class FusedLevel:
    """One pyramid level of a batch of pairs, solved by the kernels above."""

    def __init__(self, first: Tensor, texture: Tensor, u: Tensor, v: Tensor, params: TVL1Params) -> None:
        count, height, width = first.shape
        zero = torch.zeros_like(u)
        self.first, self.texture, self.params = first.contiguous(), texture.contiguous(), params
        self.now = 0  # which of the two states holds the flow
        self.states = torch.stack([torch.stack([u, v, zero, zero, zero, zero])] * 2)
        self.smoothed = torch.empty_like(self.states[0, :2])
        self.data = torch.empty((4, *first.shape), device=first.device)
        tiles = triton.cdiv(height, _TILE["TILE_Y"]) * triton.cdiv(width, _TILE["TILE_X"])
        self.changes = torch.full((2, count, tiles), float("inf"), device=first.device)
        self.grid = (tiles, count)
        self.shape = (first.numel(), height, width)
        self.sums = {"TILES": triton.next_power_of_2(tiles)}
        self.threshold = params.epsilon**2 * height * width

    def linearise(self) -> None:
        """Warp the second frames by the flow and start a new warp."""
        flow = self.states[self.now]
        _linearise[self.grid](
            flow, self.first, self.texture, self.data, *self.shape, **_TILE, **_ROUNDED
        )  # fmt: skip
        self.changes.fill_(float("inf"))

    def smooth(self) -> None:
        """Median-filter the flow of pairs that still move."""
        flow = self.states[self.now]
        _smooth[(*self.grid, 2)](
            flow, self.smoothed, self.changes[self.now], *self.shape, self.grid[0], self.threshold,
            SIZE=self.params.median_filtering, **self.sums, **_TILE, **_ROUNDED,
        )  # fmt: skip
        flow[:2].copy_(self.smoothed)

    def step(self) -> None:
        """One primal-dual iteration of pairs that still move."""
        theta = self.params.theta
        old, new = self.now, 1 - self.now
        _iterate[self.grid](
            self.states[old], self.states[new], self.data, self.changes[old], self.changes[new], *self.shape,
            self.grid[0], self.threshold, self.params.lambda_ * theta, theta, self.params.tau / theta,
            **self.sums, **_TILE, **_ROUNDED,
        )  # fmt: skip
        self.now = new

    def settled(self) -> bool:
        """Never known without waiting for the device."""
        return False

    def flow(self) -> tuple[Tensor, Tensor]:
        """Components [N, H, W] of the flow."""
        return self.states[self.now, 0], self.states[self.now, 1]
