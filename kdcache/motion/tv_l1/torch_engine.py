"""TV-L1 on many pairs at once with torch: fused Triton kernels on CUDA, plain tensor operations elsewhere.

Between two outer iterations the host asks which pairs still move; those that have met the stopping criterion are left
alone from then on, within an outer iteration by the device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdcache.device_errors import device_errors, is_broken_device, is_out_of_memory, release_memory
from kdcache.errors import DeviceError, raised
from kdcache.log import logger
from kdcache.motion import median_network as network
from kdcache.motion.tv_l1.params import TVL1Params, pyramid
from kdcache.runtime import free_bytes, free_memory, resolve_device

_BATCH = 1 << 26  # pixels of a batch at most
_BYTES = {"cuda": 180, "cpu": 320}  # that a pixel takes: images, pyramids, state; temporary ones of plain operations
_SHARE = 0.6  # of the free memory that a batch may take
_PAIRS = 49152  # of a batch: launches may be for a third more, and one dimension of a CUDA grid holds 65,535
_CUBIC = -0.75  # OpenCV's bicubic coefficient
_FLAT = float(np.finfo(np.float32).eps)  # a squared gradient up to this counts as none


class Level(Protocol):
    """One pyramid level of a batch of pairs while it is being solved."""

    def linearise(self) -> None:
        """Warp the second frames by the flow and start a new warp."""

    def advance(self) -> None:
        """One outer iteration of pairs that still move: the median filter, then the inner iterations."""

    def settled(self) -> bool:
        """Whether no pair moves any more; waits for the device."""

    def flow(self) -> tuple[Tensor, Tensor]:
        """Components [N, H, W] of the flow."""


Levels = Callable[[int, Tensor, Tensor, Tensor, Tensor], Level]
"""Of the number of a level, first frames [N, H, W], second ones and their derivatives [3, N, H, W], and flow so far."""


class PlainLevel:
    """A level in plain tensor operations, for any device."""

    def __init__(self, first: Tensor, texture: Tensor, u: Tensor, v: Tensor, params: TVL1Params) -> None:
        self.first, self.u, self.v, self.params = first, u, v, params
        self.p = [torch.zeros_like(u) for _ in range(4)]
        self.texture = texture
        self.threshold = params.epsilon**2 * first[0].numel()
        self.active = torch.ones(len(first), dtype=torch.bool, device=first.device)

    def linearise(self) -> None:
        warped, self.gx, self.gy = _warp(self.texture, self.u, self.v)
        self.square = self.gx**2 + self.gy**2
        self.constant = warped - self.gx * self.u - self.gy * self.v - self.first
        self.active = torch.ones_like(self.active)

    def advance(self) -> None:
        if self.params.median_filtering > 1:
            self.smooth()
        for _ in range(self.params.inner_iterations):
            self.step()
            if self.settled():
                break

    def smooth(self) -> None:
        """Median-filter the flow of pairs that still move."""
        size = self.params.median_filtering
        self.u = self._where_active(median(self.u, size), self.u)
        self.v = self._where_active(median(self.v, size), self.v)

    def step(self) -> None:
        """One primal-dual iteration of pairs that still move."""
        limit, theta = self.params.lambda_ * self.params.theta, self.params.theta
        rho = self.constant + (self.gx * self.u + self.gy * self.v)
        ratio = torch.where(self.square > _FLAT, -rho / self.square, 0.0)
        move = torch.where(rho > limit * self.square, -limit, ratio)
        move = torch.where(rho < -limit * self.square, limit, move)
        u = self.u + move * self.gx + theta * _divergence(self.p[0], self.p[1])
        v = self.v + move * self.gy + theta * _divergence(self.p[2], self.p[3])
        change = ((u - self.u) ** 2 + (v - self.v) ** 2).sum((1, 2))
        dual = [*self._dual(u, self.p[0], self.p[1]), *self._dual(v, self.p[2], self.p[3])]
        self.p = [self._where_active(new, old) for new, old in zip(dual, self.p, strict=True)]
        self.u, self.v = self._where_active(u, self.u), self._where_active(v, self.v)
        self.active = self.active & (change > self.threshold)

    def settled(self) -> bool:
        return not bool(self.active.any())

    def flow(self) -> tuple[Tensor, Tensor]:
        return self.u, self.v

    def _dual(self, flow: Tensor, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        pace = self.params.tau / self.params.theta
        dx = F.pad(flow[:, :, 1:] - flow[:, :, :-1], (0, 1))
        dy = F.pad(flow[:, 1:] - flow[:, :-1], (0, 0, 0, 1))
        divisor = 1 + pace * torch.hypot(dx, dy)
        return (across + pace * dx) / divisor, (down + pace * dy) / divisor

    def _where_active(self, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(self.active[:, None, None], new, old)


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Half the difference of the two neighbours in x and in y; at the border, of pixel and neighbour."""
    wide = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return 0.5 * (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]), 0.5 * (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1])


def _divergence(across: Tensor, down: Tensor) -> Tensor:
    return (across - F.pad(across, (1, 0))[:, :, :-1]) + (down - F.pad(down, (0, 0, 1, 0))[:, :-1])


def _weights(share: Tensor) -> list[Tensor]:
    """Bicubic weights of the four samples around a position ``share`` past the second."""
    rest, square = 1 - share, share * share
    first, fourth = _CUBIC * (share * (rest * rest)), _CUBIC * (square * rest)
    second = square * (share * (_CUBIC + 2) - (_CUBIC + 3)) + 1
    return [first, second, ((1 - first) - second) - fourth, fourth]


def _warp(texture: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Images [C, N, H, W] sampled bicubically at each pixel's position plus flow, zero outside."""
    height, width = u.shape[1:]
    x = (torch.arange(width, device=u.device) + u).clamp(-3, width + 1)
    y = (torch.arange(height, device=u.device)[:, None] + v).clamp(-3, height + 1)
    column, row = x.floor(), y.floor()
    across, down = _weights(x - column), _weights(y - row)
    wide = F.pad(texture, (4, 4, 4, 4)).flatten(2)
    start = (row.long() + 3) * (width + 8) + column.long() + 3
    total = torch.zeros_like(texture)
    for j in range(4):
        line = torch.zeros_like(texture)
        for i in range(4):
            at = (start + j * (width + 8) + i).flatten(1).expand(len(texture), -1, -1)
            line = line + across[i] * wide.gather(2, at).view_as(texture)
        total = total + down[j] * line
    return total


def _order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(a, b), torch.maximum(a, b)


_sort3 = network.bind(network.sort3, order=_order)
_sort5 = network.bind(network.sort5, order=_order)
_median9 = network.bind(network.median9, sort3=_sort3)
_median25 = network.bind(network.median25, order=_order, sort5=_sort5)


def median(image: Tensor, size: int) -> Tensor:
    """Median filter of side 3 or 5 over [N, H, W], the border replicated."""
    reach, (height, width) = size // 2, image.shape[1:]
    wide = F.pad(image[:, None], (reach,) * 4, mode="replicate")[:, 0]
    sort, middle = (_sort5, _median25) if size == 5 else (_sort3, _median9)
    rows = sort([wide[:, y : y + height] for y in range(size)])
    result: Tensor = middle(*([row[:, :, x : x + width] for x in range(size)] for row in rows))
    return result


def _resize(image: Tensor, size: tuple[int, int], scale: float | None) -> Tensor:
    """Bilinear resize of [N, H, W] as OpenCV's; ``scale`` is source over target size where it is not implied."""
    for axis in (2, 1):
        length = image.shape[axis]
        step = scale or length / size[axis - 1]
        place = (torch.arange(size[axis - 1], dtype=torch.float64, device=image.device) + 0.5) * step - 0.5
        below = place.floor()
        share = torch.where((below < 0) | (below >= length - 1), 0, place - below).float()
        first = below.long().clamp(0, length - 1)
        start, end = (
            image.index_select(axis, first),
            image.index_select(axis, (first + 1).clamp(max=length - 1)),
        )
        image = start + (end - start) * (share if axis == 2 else share[:, None])
    return image


@contextmanager
def _levels(count: int, sizes: Sequence[tuple[int, int]], params: TVL1Params, device: torch.device) -> Iterator[Levels]:
    """A function that makes the levels of a batch."""
    if device.type != "cuda":
        yield lambda number, first, texture, u, v: PlainLevel(first, texture, u, v, params)
        return
    with _kernels(device).workspace(count, sizes, params, device) as space:
        yield space.level


def _kernels(device: torch.device) -> Any:
    """The module ``triton_level``, where Triton can be used: it has a C compiler make its driver."""
    try:
        from triton.runtime import driver

        from kdcache.motion.tv_l1 import triton_level

        driver.active.get_current_target()
    except Exception as error:  # of the linker, of what the compiler was given, of an archive that is missing
        if is_out_of_memory(error) or is_broken_device(error):
            raise
        raise DeviceError(
            f"TV-L1 cannot be computed on {device}, for Triton does not run here ({raised(error)}): install gcc and "
            "Python's headers, or compute flow with the engine cpu."
        ) from error
    return triton_level


def _refine(level: Level, params: TVL1Params) -> tuple[Tensor, Tensor]:
    """All warps of one level."""
    for _ in range(params.warps):
        level.linearise()
        for outer in range(params.outer_iterations):
            if outer > 0 and level.settled():
                break
            level.advance()
    return level.flow()


def _solve(first: Tensor, second: Tensor, initial: Tensor | None, params: TVL1Params) -> Tensor:
    """Flow [N, H, W, 2] of a batch of float32 pairs [N, H, W]."""
    sizes = pyramid(first.shape[1], first.shape[2], params)
    step = params.scale_step
    levels = [(first, second)]
    start = torch.zeros((*first.shape, 2), device=first.device) if initial is None else initial
    u, v = start.unbind(-1)
    for size in sizes[1:]:
        levels.append((_resize(levels[-1][0], size, 1 / step), _resize(levels[-1][1], size, 1 / step)))
        u, v = _resize(u, size, 1 / step) * step, _resize(v, size, 1 / step) * step
    with _levels(len(first), sizes, params, first.device) as level:
        for k in reversed(range(len(sizes))):
            one, other = levels[k]
            texture = torch.stack([other, *gradients(other)])
            u, v = _refine(level(k, one, texture, u.contiguous(), v.contiguous()), params)
            if k > 0:
                u, v = _resize(u, sizes[k - 1], None) * (1 / step), _resize(v, sizes[k - 1], None) * (1 / step)
        return torch.stack([u, v], -1)


def solve_pairs_torch(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    initial: NDArray[np.float32] | None,
    params: TVL1Params,
    name: str | None = None,
) -> NDArray[np.float32]:
    """Flow float32 [N, H, W, 2] of uint8 [N, H, W] pairs, on CUDA where there is one or on the device named."""
    device = resolve_device(name or "auto")
    size, k = _pairs_at_once(device, first[0].size), 0
    flows: list[Any] = []
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.inference_mode(), current:
        while k < len(first):
            batch = [None if array is None else array[k : k + size] for array in (first, second, initial)]
            flow = _solved(batch, params, device)
            if flow is None:  # the tensors of the attempt are gone by now
                size = min(size, len(first) - k) // 2
                logger.warning("TV-L1: out of memory: going on with %d pairs at once.", size)
                release_memory(device)  # what is kept for the next batch was dropped with the attempt
                continue
            flows.append(flow)
            k += len(flow)
    return np.concatenate(flows)


def _pairs_at_once(device: torch.device, pixels: int) -> int:
    """As many pairs as the free memory holds, at least one."""
    free = free_bytes(device) if device.type == "cuda" else free_memory()
    fit = _BATCH if free is None else min(_BATCH, int(_SHARE * free) // _BYTES[device.type])
    return min(_PAIRS, max(1, fit // pixels))


def _solved(
    batch: Sequence[NDArray[Any] | None], params: TVL1Params, device: torch.device
) -> NDArray[np.float32] | None:
    """Flow of some pairs (first, second frames, initial flow), or None where fewer may fit into memory.

    Raises:
        DeviceError: one pair does not fit, or the device is broken.
    """
    frames = batch[0]
    assert frames is not None
    what = f"TV-L1 of one pair of {frames.shape[2]} × {frames.shape[1]} pixels"
    with device_errors(device, what, "end what else uses it, or compute smaller frames or with engine cpu"):
        try:
            first, second, initial = [None if a is None else torch.from_numpy(a).to(device).float() for a in batch]
            assert first is not None
            assert second is not None
            return np.asarray(_solve(first, second, initial, params).cpu().numpy())
        except (RuntimeError, MemoryError) as error:
            if len(frames) == 1 or not is_out_of_memory(error):
                raise
    return None
