"""TV-L1 on the CPU: one compiled call a pair, pairs in parallel threads."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcache.motion.jit import cached_njit
from kdcache.motion.median import median3, median5
from kdcache.motion.tv_l1.cpu_filters import MARGIN, linearise, make_texture, resize
from kdcache.motion.tv_l1.cpu_update import goes_on, iterate, pitch
from kdcache.motion.tv_l1.jit import OPTIONS, compiled, spliced
from kdcache.motion.tv_l1.parallel import each_pair
from kdcache.motion.tv_l1.params import TVL1Params, pyramid

Plane = NDArray[np.float32]
Sizes = NDArray[np.int64]
_BAND = 2000  # pixels that the inner iteration takes at a time: long loops, all planes of a band in L2 cache


class Workspace(NamedTuple):
    """Memory for one pair, used again for the next; nothing is allocated within a pair.

    planes [12, ≥ (H + 2) · pitch]: flow, one spare, dual variables, linearised data and squared change, padded as
    the update wants them. first, second: all pyramid levels of the frames. texture: the second frame ready to
    be warped. rows [10, ·], at: one value a pixel of a row.
    """

    planes: Plane
    first: Plane
    second: Plane
    texture: Plane
    rows: Plane
    at: NDArray[np.int32]


def _workspace(sizes: list[tuple[int, int]]) -> Workspace:
    height, width = sizes[0]
    levels = sum(h * w for h, w in sizes)
    longest = max(height, width) + 4
    stride = pitch(width)
    return Workspace(
        planes=_planes((height + 2) * stride),
        first=np.zeros(levels, np.float32),
        second=np.zeros(levels, np.float32),
        texture=np.zeros((height + 2 * MARGIN) * (width + 2 * MARGIN) * 4, np.float32),
        rows=np.zeros((10, longest), np.float32),
        at=np.zeros(longest, np.int32),
    )


def _planes(count: int) -> Plane:
    """Twelve planes of ``count`` numbers or more, each at the start of a cache line.

    They begin at different offsets within 4 KiB: what is loaded would else wait for a store to another plane
    whose address ends alike.
    """
    count += (80 - count) % 1024
    flat = np.zeros(12 * count + 16, np.float32)
    start = -flat.ctypes.data // 4 % 16
    return flat[start : start + 12 * count].reshape(12, count)


@spliced
def _build(frame: NDArray[np.uint8], sizes: Sizes, step: float, levels: Plane, work: Workspace) -> None:
    """All pyramid levels of a frame, finest first, one after the other in ``levels``."""
    height, width = frame.shape
    for y in range(height):
        for x in range(width):
            levels[y * width + x] = frame[y, x]
    start = 0
    for k in range(1, sizes.shape[0]):
        h, w = sizes[k - 1]
        oh, ow = sizes[k]
        resize(
            levels, start, (h, w), w, levels, start + h * w, (oh, ow), ow, 1.0 / step,
            work.planes[0], work.rows[0], work.at,
        )  # fmt: skip
        start += h * w


@spliced
def _refine(
    start: int,
    height: int,
    width: int,
    flow: tuple[Plane, Plane, Plane],
    work: Workspace,
    numbers: tuple[int, int, int, int],
    weights: tuple[np.float32, np.float32, np.float32],
    epsilon: float,
    counts: NDArray[np.int64],
) -> tuple[Plane, Plane, Plane]:
    """All warps of one level; gives back the planes of flow (and the spare one), which change places."""
    warps, outer, inner, median = numbers
    u, v, spare = flow
    threshold = np.float32(epsilon * epsilon * (height * width))
    p = (work.planes[3], work.planes[4], work.planes[5], work.planes[6])
    data = (work.planes[7], work.planes[8], work.planes[9], work.planes[10])
    change = work.planes[11]
    stride = pitch(width)
    band = max(1, _BAND // stride)
    for plane in (*p, *data):
        _clear(plane, (height + 2) * stride)
    for plane in flow:
        _clear_padding(plane, height, width)
    make_texture(work.second, start, height, width, work.texture)
    for warp in range(warps):
        linearise(work.first, start, work.texture, height, width, u, v, data, work.rows, work.at)
        done, moving = 0, True
        while moving and done < outer * inner:
            if done % inner == 0 and median > 1:
                for _ in range(2):
                    if median == 5:
                        median5(u, stride, stride, (height, width), work.rows, spare)
                    else:
                        median3(u, stride, stride, (height, width), work.rows, spare)
                    u, v, spare = v, spare, u
            near = iterate(height, width, band, data, p, u, v, change, work.rows, weights)
            moving = goes_on(near, change, height, width, threshold)
            done += 1
        counts[warp] = done
    return u, v, spare


@spliced
def _rescale(
    flow: tuple[Plane, Plane, Plane],
    size: tuple[int, int],
    out_size: tuple[int, int],
    scale: float,
    gain: float,
    work: Workspace,
) -> tuple[Plane, Plane, Plane]:
    """Both components of flow at another level's size and unit; the planes change places."""
    u, v, spare = flow
    stride, out_stride = pitch(size[1]), pitch(out_size[1])
    for _ in range(2):
        resize(
            u, stride, size, stride, spare, out_stride, out_size, out_stride, scale,
            work.planes[3], work.rows[0], work.at,
        )  # fmt: skip
        _multiply(spare, (out_size[0] + 1) * out_stride, gain)
        u, v, spare = v, spare, u
    return u, v, spare


@compiled
def _multiply(plane: Plane, count: int, gain: float) -> None:
    """Times ``gain`` in double precision, as OpenCV multiplies by a scalar."""
    for k in range(count):
        plane[k] = np.float32(np.float64(plane[k]) * gain)


@compiled
def _clear(plane: Plane, count: int) -> None:
    for k in range(count):
        plane[k] = 0


@compiled
def _clear_padding(plane: Plane, height: int, width: int) -> None:
    """Zeros right of every row."""
    stride = pitch(width)
    for row in range(height + 2):
        for k in range(row * stride + width, (row + 1) * stride):
            plane[k] = 0


@compiled
def _copy(flow: Plane, u: Plane, v: Plane, inward: bool) -> None:
    """Flow [H, W, 2] into its two padded planes, or back."""
    height, width, _ = flow.shape
    for y in range(height):
        start = (y + 1) * pitch(width)
        for x in range(width):
            if inward:
                u[start + x], v[start + x] = flow[y, x, 0], flow[y, x, 1]
            else:
                flow[y, x, 0], flow[y, x, 1] = u[start + x], v[start + x]


@cached_njit(**OPTIONS)
def _solve(
    frames: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    flow: Plane,
    warm: bool,
    sizes: Sizes,
    step: float,
    numbers: tuple[int, int, int, int],
    weights: tuple[np.float32, np.float32, np.float32],
    epsilon: float,
    work: Workspace,
    counts: NDArray[np.int64],
) -> None:
    """Flow of one pair of ``frames`` into ``flow`` [H, W, 2].

    It starts from what ``flow`` holds when ``warm``, shrunk to the coarsest level; else ``flow`` is zero.
    """
    coarsest = sizes.shape[0] - 1
    for k in range(2):
        _build(frames[k], sizes, step, (work.first, work.second)[k], work)
    planes = (work.planes[0], work.planes[1], work.planes[2])
    for plane in planes:
        _clear(plane, plane.shape[0])
    _copy(flow, planes[0], planes[1], True)
    for k in range(coarsest if warm else 0):
        (h, w), (oh, ow) = sizes[k], sizes[k + 1]
        planes = _rescale(planes, (h, w), (oh, ow), 1.0 / step, step, work)
    start = work.first.shape[0]
    for k in range(coarsest, -1, -1):
        h, w = sizes[k]
        start -= h * w
        planes = _refine(start, h, w, planes, work, numbers, weights, epsilon, counts[k])
        if k > 0:
            oh, ow = sizes[k - 1]
            planes = _rescale(planes, (h, w), (oh, ow), 0.0, 1.0 / step, work)
    _copy(flow, planes[0], planes[1], False)


def solve_pairs(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    initial: Plane | None,
    params: TVL1Params,
    threads: int | None = None,
) -> tuple[Plane, NDArray[np.int64]]:
    """Flow float32 [N, H, W, 2] of uint8 [N, H, W] pairs, and iterations int64 [N, levels, warps].

    ``threads`` pairs are worked on at a time (default: the cores this process may use); the result does not
    depend on it.
    """
    count, height, width = first.shape
    sizes = pyramid(height, width, params)
    flow = np.zeros((count, height, width, 2), np.float32) if initial is None else initial.copy()
    counts = np.zeros((count, len(sizes), params.warps), np.int64)
    numbers = (params.warps, params.outer_iterations, params.inner_iterations, params.median_filtering)
    limit, rate = np.float32(params.lambda_ * params.theta), np.float32(params.tau / params.theta)
    weights = (limit, np.float32(params.theta), rate)
    local = threading.local()

    def work(pair: int) -> None:
        if not hasattr(local, "space"):
            local.space = _workspace(sizes)
        _solve(
            (first[pair], second[pair]), flow[pair], initial is not None, np.array(sizes, np.int64),
            params.scale_step, numbers, weights, params.epsilon, local.space, counts[pair],
        )  # fmt: skip

    each_pair(count, threads, work)
    return flow, counts
