"""Triton kernels of TV-L1's primal-dual iterations: several in one launch, and who goes on after them.

A program loads a tile of the state once, makes up to ``STEPS`` iterations of it in registers and writes what is right
then: each iteration needs one more pixel of the tiles around, which programs compute as well, so that of a tile only
the pixels ``STEPS`` away from its border are its own. Memory, which bounds an iteration made alone, is read and written
a quarter as often.

An iteration whose change is below the threshold is a pair's last. That is known only when all tiles have been added up,
after the launch: where it was not the launch's last, the next launch makes only so many, from the copy of the state
that the launch has left as it was. ``moving`` [N + 1] holds how many iterations a pair may still make: none, ``MANY``,
or as many as are made again. Memory is laid out as in ``triton_kernels``.
"""

# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

STEPS = 4  # iterations of a launch
OWN_Y, OWN_X = 24, 56  # pixels of a tile that are its own
TILE = {"STEPS": STEPS, "TILE_Y": OWN_Y + 2 * STEPS, "TILE_X": OWN_X + 2 * STEPS, "num_warps": 16}
MANY = 1 << 30


@triton.jit
def _shifted(values, AXIS: tl.constexpr, BY: tl.constexpr):
    """The values of neighbours; at the tile's border, where there is none, a pixel's own."""
    LENGTH: tl.constexpr = values.shape[AXIS]
    at = tl.minimum(tl.maximum(tl.arange(0, LENGTH) + BY, 0), LENGTH - 1)
    return tl.gather(values, tl.broadcast_to(at[:, None] if AXIS == 0 else at[None, :], values.shape), AXIS)


@triton.jit
def _inverse(b):
    """1 / b, rounded; for numbers far from the limits of float32, as all are here."""
    near = 1.0 / b
    return tl.fma(near, tl.fma(-b, near, 1.0), near)


@triton.jit
def _divided(a, b, inverse):
    """a / b, rounded: what ``tl.div_rn`` gives, without its branch for numbers near the limits of float32."""
    near = a * inverse
    return tl.fma(tl.fma(-b, near, a), inverse, near)


@triton.jit
def _root(square):
    """Square root, rounded; zero for squares that leave no trace in 1 + root."""
    inverse = tl.rsqrt(square)
    near = square * inverse
    return tl.where(square > 1e-30, tl.fma(tl.fma(-near, near, square), 0.5 * inverse, near), 0.0)


@triton.jit(do_not_specialize=["steps", "upto"])
def iterate(
    uv,
    dual,
    data,
    pairs,
    moving,
    turns,
    changes,
    plane,
    numbers,
    height,
    width,
    pitch,
    tiles,
    steps,
    upto,
    limit,
    theta,
    pace,
    STEPS: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """``steps`` iterations of the listed pairs that may make ``MANY``, or as many as are made again, of pairs that may
    make some but no more than ``upto``: ``uv`` [2, 2, N, H, P] and ``dual`` [2, 4, N, H, P], from one copy to the
    other, by ``data`` [3, N, H, P]; the squared change of each iteration and tile into ``changes`` [N, STEPS, tiles].
    ``numbers`` is N + 1."""
    pair = tl.load(pairs + tl.program_id(1))
    allowed = tl.load(moving + pair)
    if (allowed != 0) & (allowed <= upto):
        turn_uv, turn_dual = tl.load(turns + pair), tl.load(turns + numbers + pair)
        new_uv, new_dual = uv + (1 - turn_uv) * 2 * plane, dual + (1 - turn_dual) * 4 * plane
        old_uv, old_dual = uv + turn_uv * 2 * plane, dual + turn_dual * 4 * plane
        across = tl.cdiv(pitch, TILE_X - 2 * STEPS)
        row, column = tl.arange(0, TILE_Y)[:, None], tl.arange(0, TILE_X)[None, :]
        y = (tl.program_id(0) // across) * (TILE_Y - 2 * STEPS) - STEPS + row
        x = (tl.program_id(0) % across) * (TILE_X - 2 * STEPS) - STEPS + column
        held = (y >= 0) & (y < height) & (x >= 0) & (x < pitch)
        at = pair.to(tl.int64) * height * pitch + y * pitch + x
        u = tl.load(old_uv + at, mask=held, other=0.0)
        v = tl.load(old_uv + plane + at, mask=held, other=0.0)
        p_ux = tl.load(old_dual + at, mask=held, other=0.0)
        p_uy = tl.load(old_dual + plane + at, mask=held, other=0.0)
        p_vx = tl.load(old_dual + 2 * plane + at, mask=held, other=0.0)
        p_vy = tl.load(old_dual + 3 * plane + at, mask=held, other=0.0)
        gx = tl.load(data + at, mask=held, other=0.0)
        gy = tl.load(data + plane + at, mask=held, other=0.0)
        constant = tl.load(data + 2 * plane + at, mask=held, other=0.0)
        square = gx * gx + gy * gy
        steep = square > 1.1920929e-07
        per_square = _inverse(tl.where(steep, square, 1.0))
        own = held & (row >= STEPS) & (row < TILE_Y - STEPS) & (column >= STEPS) & (column < TILE_X - STEPS)
        counted = own & (x < width)
        for step in range(tl.where(allowed > STEPS, steps, allowed)):
            div_u = p_ux - tl.where(x > 0, _shifted(p_ux, 1, -1), 0.0)
            div_u += p_uy - tl.where(y > 0, _shifted(p_uy, 0, -1), 0.0)
            div_v = p_vx - tl.where(x > 0, _shifted(p_vx, 1, -1), 0.0)
            div_v += p_vy - tl.where(y > 0, _shifted(p_vy, 0, -1), 0.0)
            rho = constant + (gx * u + gy * v)
            move = tl.where(steep, _divided(-rho, square, per_square), 0.0)
            move = tl.where(rho > limit * square, -limit, move)
            move = tl.where(rho < -limit * square, limit, move)
            new_u, new_v = (u + move * gx) + theta * div_u, (v + move * gy) + theta * div_v
            moved = (new_u - u) * (new_u - u) + (new_v - v) * (new_v - v)
            tl.store(changes + (pair * STEPS + step) * tiles + tl.program_id(0), tl.sum(tl.where(counted, moved, 0.0)))
            u, v = new_u, new_v
            ux = tl.where(x + 1 < width, _shifted(u, 1, 1) - u, 0.0)
            uy = tl.where(y + 1 < height, _shifted(u, 0, 1) - u, 0.0)
            vx = tl.where(x + 1 < width, _shifted(v, 1, 1) - v, 0.0)
            vy = tl.where(y + 1 < height, _shifted(v, 0, 1) - v, 0.0)
            norm_u, norm_v = 1.0 + pace * _root(ux * ux + uy * uy), 1.0 + pace * _root(vx * vx + vy * vy)
            per_u, per_v = _inverse(norm_u), _inverse(norm_v)
            p_ux, p_uy = _divided(p_ux + pace * ux, norm_u, per_u), _divided(p_uy + pace * uy, norm_u, per_u)
            p_vx, p_vy = _divided(p_vx + pace * vx, norm_v, per_v), _divided(p_vy + pace * vy, norm_v, per_v)
        tl.store(new_uv + at, u, mask=own)
        tl.store(new_uv + plane + at, v, mask=own)
        tl.store(new_dual + at, p_ux, mask=own)
        tl.store(new_dual + plane + at, p_uy, mask=own)
        tl.store(new_dual + 2 * plane + at, p_vx, mask=own)
        tl.store(new_dual + 3 * plane + at, p_vy, mask=own)


@triton.jit(do_not_specialize=["steps", "upto"])
def judge(
    pairs, moving, turns, changes, numbers, tiles, steps, upto, threshold, STEPS: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """After iterations: the other copies hold the state, but where fewer are to be made again. A pair goes on that
    changed by more than the threshold in each. Tiles are added up in a fixed order."""
    pair = tl.load(pairs + tl.program_id(0))
    allowed = tl.load(moving + pair)
    if (allowed != 0) & (allowed <= upto):
        tile = tl.arange(0, TILES)
        last = allowed  # the iteration that is the pair's last: the first whose change is small
        if allowed > STEPS:
            for back in tl.static_range(STEPS):
                step = STEPS - 1 - back
                of_tiles = changes + (pair * STEPS + step) * tiles + tile
                total = tl.sum(tl.load(of_tiles, mask=tile < tl.where(step < steps, tiles, 0), other=0.0))
                last = tl.where((step < steps) & ~(total > threshold), step + 1, last)
        again = (last < steps) & (allowed > STEPS)
        turned = 1 - again.to(tl.int32)
        tl.store(turns + pair, (tl.load(turns + pair) + turned) % 2)
        tl.store(turns + numbers + pair, (tl.load(turns + numbers + pair) + turned) % 2)
        tl.store(moving + pair, tl.where(again | (last > STEPS), last, 0))
