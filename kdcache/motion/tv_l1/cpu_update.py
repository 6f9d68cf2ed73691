"""The inner iteration of TV-L1, compiled: thresholding, primal and dual update in one pass over memory.

Planes are flat float32 with padding: pixel (y, x) lies at ``(y + 1) * stride + x`` with ``stride = pitch(width)``,
one row above and below, and one to eight columns right of each row, which then begins at a multiple of 32 bytes.
The first padding column is kept so that both the flow's derivative and the dual variable vanish across the
border, the others as zero. Work goes in bands of rows, each band one long loop over contiguous memory, the dual
update one row behind the primal one.

Every value is rounded as in OpenCV's scalar code. The flow is that sensitive: one rounding at one pixel can
move the iteration at which a warp stops, and with it pixels by as much as 0.001 grey levels of noise would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion import simd as lanes
from kdcache.motion.loops import at_once, pipelined, total
from kdcache.motion.median_network import bind
from kdcache.motion.tv_l1.jit import compiled, spliced

Plane = NDArray[np.float32]
Four = tuple[Plane, Plane, Plane, Plane]
Weights = tuple[np.float32, np.float32, np.float32]
_FLAT = np.float32(np.finfo(np.float32).eps)  # a squared gradient up to this counts as none
_TINY = np.float32(1e-18)  # its square is still a normal number


@compiled
def pitch(width: int) -> int:
    """Numbers from one row of a padded plane to the next."""
    return (width + 8) // 8 * 8  # at least one column of padding


@compiled
def choose(condition: bool, yes: np.float32, no: np.float32) -> np.float32:
    """``yes`` if the condition holds; the scalar twin of ``lanes.choose``."""
    return yes if condition else no


def _step(rho: Any, quotient: Any, square: Any, limit: Any) -> Any:
    """How far along the gradient thresholding moves the flow; for numbers and for lanes."""
    bound = limit * square
    step = choose(square > _FLAT, quotient, np.float32(0))
    step = choose(rho > bound, -limit, step)
    return choose(rho < -bound, limit, step)


def _moved(a: Any, b: Any, step: Any, x: Any, y: Any, div_x: Any, div_y: Any, theta: Any) -> Any:
    """The flow after thresholding and primal update, and its squared change; for numbers and for lanes."""
    new_x, new_y = (x + step * a) + theta * div_x, (y + step * b) + theta * div_y
    dx, dy = new_x - x, new_y - y
    return new_x, new_y, dx * dx + dy * dy


_step_of_number, _moved_number = compiled(_step), compiled(_moved)
_step_of_lanes = bind(_step, choose=lanes.choose)


def _brightness(planes: Any, steps: Any, weights: Any) -> Any:
    """The brightness difference, and the step that would level it."""
    gx, gy, constant, square, *_, u, v, _ = planes
    rho = constant[0] + (gx[0] * u[0] + gy[0] * v[0])
    return rho, -rho / square[0]


def _thresholds(planes: Any, steps: Any, weights: Any, rho: Any, quotient: Any) -> Any:
    return (_step_of_lanes(rho, quotient, planes[3][0], weights[0]),)


def _flows(planes: Any, steps: Any, weights: Any, step: Any) -> None:
    """Flow ← thresholded flow + theta · div p."""
    gx, gy, _, _, p11, p12, p21, p22, u, v, change = planes
    _, up = steps
    div_x = (p11[0] - p11[-1]) + (p12[0] - p12[up])
    div_y = (p21[0] - p21[-1]) + (p22[0] - p22[up])
    u[0], v[0], change[0] = _moved(gx[0], gy[0], step, u[0], v[0], div_x, div_y, weights[1])


# 16 lanes at a time, a processor looks far enough ahead.
_primal = pipelined(_brightness, _thresholds, _flows) if lanes.COUNT == 8 else at_once(_brightness, _thresholds, _flows)


def _gradients(planes: Any, steps: Any, weights: Any) -> Any:
    """p ← p + tau / theta · ∇u; of each |∇u| a float32 root, its square, and what that misses."""
    p11, p12, p21, p22, u, v = planes
    down, _ = steps
    given = []
    for flow, along, across in ((u, p11, p12), (v, p21, p22)):
        x, y = flow[1] - flow[0], flow[down] - flow[0]
        along[0], across[0] = along[0] + weights[2] * x, across[0] + weights[2] * y
        xx, yy = x * x, y * y
        square = xx + yy
        share = square - xx
        low = (lanes.fma(x, x, -xx) + lanes.fma(y, y, -yy)) + ((xx - (square - share)) + (yy - share))
        given += [lanes.sqrt(square), square, low]
    return given


def _halves(planes: Any, steps: Any, weights: Any, *roots: Any) -> Any:
    """The roots, what their squares miss of the sums, and half the inverse of their product."""
    root_u, square_u, low_u, root_v, square_v, low_v = roots
    miss_u, miss_v = lanes.fma(-root_u, root_u, square_u) + low_u, lanes.fma(-root_v, root_v, square_v) + low_v
    safe_u, safe_v = lanes.order(root_u, _TINY)[1], lanes.order(root_v, _TINY)[1]
    return root_u, miss_u, safe_u, root_v, miss_v, safe_v, 0.5 / (safe_u * safe_v)


def _divisors(planes: Any, steps: Any, weights: Any, *taken: Any) -> Any:
    """1 + tau / theta · |∇u| of both components, and the inverse of their product."""
    root_u, miss_u, safe_u, root_v, miss_v, safe_v, half = taken
    norm_u, norm_v = lanes.fma(miss_u, half * safe_v, root_u), lanes.fma(miss_v, half * safe_u, root_v)
    over_u, over_v = 1 + weights[2] * norm_u, 1 + weights[2] * norm_v
    return over_u, over_v, 1 / (over_u * over_v)


def _quotients(planes: Any, steps: Any, weights: Any, over_u: Any, over_v: Any, both: Any) -> None:
    """p ← p over its divisor."""
    p11, p12, p21, p22, _, _ = planes
    for over, other, pair in ((over_u, over_v, (p11, p12)), (over_v, over_u, (p21, p22))):
        inverse = both * other
        inverse = lanes.fma(lanes.fma(-over, inverse, 1), inverse, inverse)
        for p in pair:
            p[0] = _quotient(p[0], over, inverse)


def _quotient(numerator: Any, divisor: Any, inverse: Any) -> Any:
    """numerator / divisor rounded as a division would be, from the divisor's inverse (Markstein 1990)."""
    quotient = numerator * inverse
    return lanes.fma(lanes.fma(-divisor, quotient, numerator), inverse, quotient)


# p ← (p + tau / theta · ∇u) / (1 + tau / theta · |∇u|). OpenCV takes |∇u| from a double-precision ``hypot`` and
# divides four times. Here the float32 root gets one Newton step from what it misses, and one division serves both
# divisors: the same bits at a third of the cost.
_dual = pipelined(_gradients, _halves, _divisors, _quotients)


@compiled
def _first_column(
    top: int, rows: int, stride: int, data: Four, p: Four, u: Plane, v: Plane, kept: Plane, weights: Weights
) -> None:
    """The update of a band's first column into ``kept`` [3, ·]: OpenCV adds up its divergence in another order."""
    gx, gy, constant, square = data
    p11, p12, p21, p22 = p
    for row in range(rows):
        k = (top + 1 + row) * stride
        div_x, div_y = (p11[k] + p12[k]) - p12[k - stride], (p21[k] + p22[k]) - p22[k - stride]
        rho = constant[k] + (gx[k] * u[k] + gy[k] * v[k])
        step = _step_of_number(rho, -rho / square[k], square[k], weights[0])
        kept[0, row], kept[1, row], kept[2, row] = _moved_number(
            gx[k], gy[k], step, u[k], v[k], div_x, div_y, weights[1]
        )


@spliced
def iterate(
    height: int,
    width: int,
    band: int,
    data: Four,
    p: Four,
    u: Plane,
    v: Plane,
    change: Plane,
    rows: Plane,
    weights: Weights,
) -> np.float32:
    """One iteration over a whole level, in place; gives nearly the sum of ``change``.

    ``data`` is what ``linearise`` fills, ``p`` the dual variables p11, p12, p21, p22, ``change`` gets each
    pixel's squared change (padding included, as zero); ``weights`` are lambda · theta, theta and tau / theta.
    ``band`` rows are taken at a time. Scratch: ``rows`` [≥ 3, ≥ height].
    """
    s, near = pitch(width), np.float32(0)
    for top in range(0, height, band):
        count = min(band, height - top)
        i = (top + 1) * s
        _first_column(top, count, s, data, p, u, v, rows, weights)
        _primal((*data, *p, u, v, change), i, count * s, (s,), weights)
        for row in range(count):
            k = i + row * s
            u[k], v[k], change[k] = rows[0, row], rows[1, row], rows[2, row]
            u[k + width], v[k + width], change[k + width] = u[k + width - 1], v[k + width - 1], np.float32(0)
        near += total(change, i, count * s)
        first, last = max(top - 1, 0), top + count - 1
        if top + count == height:
            last = height
            for k in range((height + 1) * s, (height + 2) * s):
                u[k], v[k] = u[k - s], v[k - s]
        _dual((*p, u, v), (first + 1) * s, (last - first) * s, (s,), weights)
        for row in range(first + 1, last + 1):
            p[0][row * s + width], p[2][row * s + width] = np.float32(0), np.float32(0)
            p[0][row * s + s - 1], p[2][row * s + s - 1] = np.float32(0), np.float32(0)
    return near


@compiled
def goes_on(near: np.float32, change: Plane, height: int, width: int, threshold: np.float32) -> bool:
    """Whether the summed squared change is above the threshold in OpenCV's arithmetic; ``near`` is a sum in lanes.

    OpenCV adds pixel after pixel in float32. That slow sum is taken only where it may decide otherwise than the
    sum in lanes: its rounding error is at most 2⁻²⁴ of it for each addition.
    """
    stride = pitch(width)
    doubt = threshold * np.float32(height * width) * np.float32(1.1 * 2.0**-24)
    if abs(near - threshold) > doubt:
        return bool(near > threshold)
    exact = np.float32(0)
    for y in range(1, height + 1):
        for k in range(y * stride, y * stride + width):
            exact += change[k]
    return bool(exact > threshold)
