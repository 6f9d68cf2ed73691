"""The inner iteration of TV-L1, compiled: thresholding, primal and dual update in one pass over memory.

Planes are flat float32 with one column and one row of padding: pixel (y, x) lies at ``(y + 1) * stride + x``
with ``stride = width + 1``. The padding column is right neighbour of one row and left neighbour of the next;
it is kept so that both the flow's derivative and the dual variable vanish across the border. Work goes in
bands of rows, each band one long loop over contiguous memory, the dual update one row behind the primal one.

Every value is rounded as in OpenCV's scalar code. The flow is that sensitive: one rounding at one pixel can
move the iteration at which a warp stops, and with it pixels by as much as 0.001 grey levels of noise would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.motion.tv_l1 import simd as lanes
from kdcache.motion.tv_l1.jit import compiled, spliced
from kdcache.motion.tv_l1.median_network import bind

Plane = NDArray[np.float32]
Four = tuple[Plane, Plane, Plane, Plane]
Weights = tuple[np.float32, np.float32, np.float32]
_FLAT = np.float32(np.finfo(np.float32).eps)  # a squared gradient up to this counts as none
_TINY = np.float32(1e-18)  # its square is still a normal number


@compiled
def choose(condition: bool, yes: np.float32, no: np.float32) -> np.float32:
    """``yes`` if the condition holds; the scalar twin of ``lanes.choose``."""
    return yes if condition else no


def _moved(a: Any, b: Any, constant: Any, square: Any, x: Any, y: Any, div_x: Any, div_y: Any, weights: Any) -> Any:
    """The flow after thresholding and primal update, and its squared change; for numbers and for lanes."""
    limit, theta, _ = weights
    rho = constant + (a * x + b * y)
    bound = limit * square
    step = choose(square > _FLAT, -rho / square, np.float32(0))
    step = choose(rho > bound, -limit, step)
    step = choose(rho < -bound, limit, step)
    new_x, new_y = (x + step * a) + theta * div_x, (y + step * b) + theta * div_y
    dx, dy = new_x - x, new_y - y
    return new_x, new_y, dx * dx + dy * dy


_moved_number = compiled(_moved)
_moved_lanes = bind(_moved, choose=lanes.choose)


@lanes.stretch
def _primal(planes: Any, steps: Any, weights: Any) -> None:
    """Flow ← thresholded flow + theta · div p."""
    gx, gy, constant, square, p11, p12, p21, p22, u, v, change = planes
    _, up = steps
    div_x = (p11[0] - p11[-1]) + (p12[0] - p12[up])
    div_y = (p21[0] - p21[-1]) + (p22[0] - p22[up])
    u[0], v[0], change[0] = _moved_lanes(gx[0], gy[0], constant[0], square[0], u[0], v[0], div_x, div_y, weights)


def _root(x: Any, y: Any) -> Any:
    """A float32 root of x² + y², and what its square misses of the sum."""
    xx, yy = x * x, y * y
    total = xx + yy
    share = total - xx
    low = (lanes.fma(x, x, -xx) + lanes.fma(y, y, -yy)) + ((xx - (total - share)) + (yy - share))
    root = lanes.sqrt(total)
    return root, lanes.fma(-root, root, total) + low


def _quotient(numerator: Any, divisor: Any, inverse: Any) -> Any:
    """numerator / divisor rounded as a division would be, from the divisor's inverse (Markstein 1990)."""
    quotient = numerator * inverse
    return lanes.fma(lanes.fma(-divisor, quotient, numerator), inverse, quotient)


@lanes.stretch
def _dual(planes: Any, steps: Any, weights: Any) -> None:
    """p ← (p + tau / theta · ∇u) / (1 + tau / theta · |∇u|).

    OpenCV takes |∇u| from a double-precision ``hypot`` and divides four times. Here the float32 root gets one
    Newton step from what it misses, and one division serves both divisors: the same bits at a third of the cost.
    """
    p11, p12, p21, p22, u, v = planes
    down, _ = steps
    _, _, pace = weights
    x, y = u[0], v[0]
    ux, uy, vx, vy = u[1] - x, u[down] - x, v[1] - y, v[down] - y
    (root_u, miss_u), (root_v, miss_v) = _root(ux, uy), _root(vx, vy)
    safe_u, safe_v = lanes.order(root_u, _TINY)[1], lanes.order(root_v, _TINY)[1]
    half = 0.5 / (safe_u * safe_v)
    norm_u, norm_v = lanes.fma(miss_u, half * safe_v, root_u), lanes.fma(miss_v, half * safe_u, root_v)
    over_u, over_v = 1 + pace * norm_u, 1 + pace * norm_v
    both = 1 / (over_u * over_v)
    inverse_u, inverse_v = both * over_v, both * over_u
    inverse_u = lanes.fma(lanes.fma(-over_u, inverse_u, 1), inverse_u, inverse_u)
    inverse_v = lanes.fma(lanes.fma(-over_v, inverse_v, 1), inverse_v, inverse_v)
    first, second = (
        _quotient(p11[0] + pace * ux, over_u, inverse_u),
        _quotient(p12[0] + pace * uy, over_u, inverse_u),
    )
    third, fourth = (
        _quotient(p21[0] + pace * vx, over_v, inverse_v),
        _quotient(p22[0] + pace * vy, over_v, inverse_v),
    )
    p11[0], p12[0], p21[0], p22[0] = first, second, third, fourth


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
        kept[0, row], kept[1, row], kept[2, row] = _moved_number(
            gx[k], gy[k], constant[k], square[k], u[k], v[k], div_x, div_y, weights
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
) -> None:
    """One iteration over a whole level, in place.

    ``data`` is what ``linearise`` fills, ``p`` the dual variables p11, p12, p21, p22, ``change`` gets each
    pixel's squared change (padding included, as zero); ``weights`` are lambda · theta, theta and tau / theta.
    ``band`` rows are taken at a time. Scratch: ``rows`` [≥ 3, ≥ height].
    """
    s = width + 1
    for top in range(0, height, band):
        count = min(band, height - top)
        i = (top + 1) * s
        _first_column(top, count, s, data, p, u, v, rows, weights)
        _primal((*data, *p, u, v, change), i, count * s, (s,), weights)
        for row in range(count):
            k = i + row * s
            u[k], v[k], change[k] = rows[0, row], rows[1, row], rows[2, row]
            u[k + width], v[k + width], change[k + width] = u[k + width - 1], v[k + width - 1], np.float32(0)
        first, last = max(top - 1, 0), top + count - 1
        if top + count == height:
            last = height
            for k in range((height + 1) * s, (height + 2) * s):
                u[k], v[k] = u[k - s], v[k - s]
        _dual((*p, u, v), (first + 1) * s, (last - first) * s, (s,), weights)
        for row in range(first + 2, last + 2):
            p[0][row * s - 1], p[2][row * s - 1] = np.float32(0), np.float32(0)


@compiled
def goes_on(change: Plane, height: int, width: int, threshold: np.float32) -> bool:
    """Whether the summed squared change is above the threshold in OpenCV's arithmetic.

    OpenCV adds pixel after pixel in float32. That slow sum is taken only where it may decide otherwise than a
    sum in lanes: its rounding error is at most 2⁻²⁴ of it for each addition.
    """
    stride = width + 1
    total = lanes.total(change, stride, height * stride)
    doubt = threshold * np.float32(height * width) * np.float32(1.1 * 2.0**-24)
    if abs(total - threshold) > doubt:
        return bool(total > threshold)
    exact = np.float32(0)
    for y in range(1, height + 1):
        for k in range(y * stride, y * stride + width):
            exact += change[k]
    return bool(exact > threshold)
