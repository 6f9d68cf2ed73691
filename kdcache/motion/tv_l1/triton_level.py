"""Levels of TV-L1 on a GPU: their memory, the list of pairs that still move, and launches that are replayed as graphs.

The host waits for the device between two outer iterations (30 iterations each): it asks which pairs still move, and
launches the next for those alone. With the default parameters it waits 225 times a batch at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

from kdcache.motion.tv_l1 import triton_iteration as iteration
from kdcache.motion.tv_l1 import triton_kernels as kernels
from kdcache.motion.tv_l1.params import TVL1Params
from kdcache.replay import Graphs, Launch, Replayed, cuda_graphs

_ALIGNED = 16  # rows begin at multiples of so many numbers
_FLOW, _DUAL, _DATA = 4, 8, 3  # planes of a level: two copies of the flow and of the dual variables, and what is given
_KEPT = 2**29  # bytes of the workspace that is kept for the next batch, at most
Size = tuple[int, int]
Capture = Callable[[Launch], Launch] | None


def room(count: int) -> int:
    """So many pairs or more: 1, 2, 3, 4, 6, 8, 12, 16, 24 …; as launches are for these numbers, graphs are few."""
    step = max(1, (1 << (count - 1).bit_length()) // 4)
    return -(-count // step) * step


class LevelMemory:
    """Memory for the levels of up to ``count`` pairs, one level after the other, and the launches on it."""

    def __init__(
        self, count: int, sizes: Sequence[Size], params: TVL1Params, device: torch.device, capture: Capture
    ) -> None:
        self.count, self.sizes, self.params = count, tuple(sizes), params
        self.numbers = torch.arange(count, dtype=torch.int32, device=device)
        self.pairs = self.numbers.clone()
        self.moving = torch.zeros(count + 1, dtype=torch.int32, device=device)  # the last is of what fills the list
        self.turns = torch.zeros((2, count + 1), dtype=torch.int32, device=device)
        self.shapes = [(height, width, -(-width // _ALIGNED) * _ALIGNED) for height, width in sizes]
        self.tiles = [
            triton.cdiv(height, kernels.TILE["TILE_Y"]) * triton.cdiv(pitch, kernels.TILE["TILE_X"])
            for height, _, pitch in self.shapes
        ]
        self.parts = [  # tiles of the iterations
            triton.cdiv(height, iteration.OWN_Y) * triton.cdiv(pitch, iteration.OWN_X)
            for height, _, pitch in self.shapes
        ]
        largest = count * max(height * pitch for height, _, pitch in self.shapes)
        self.planes = torch.zeros((_FLOW + _DUAL + _DATA) * largest, device=device)
        self.changes = torch.zeros(count * iteration.STEPS * max(self.parts), device=device)
        self._graphs = Graphs(capture, "TV-L1")
        self._rounds: dict[tuple[int, int], Replayed] = {}

    @property
    def nbytes(self) -> int:
        """What it takes of the device's memory, nearly."""
        return self.planes.nbytes + self.changes.nbytes

    def serves(self, count: int, sizes: Sequence[Size], params: TVL1Params) -> bool:
        """Whether a batch fits."""
        return count <= self.count and (self.sizes, self.params) == (tuple(sizes), params)

    def views(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Flow [2, 2, N, H, P], dual variables [2, 4, N, H, P] and data [3, N, H, P] of a level."""
        height, _, pitch = self.shapes[number]
        shape = (self.count, height, pitch)
        planes = self.planes[: (_FLOW + _DUAL + _DATA) * math.prod(shape)].view(-1, *shape)
        flow, dual, data = planes[:_FLOW], planes[_FLOW : _FLOW + _DUAL], planes[_FLOW + _DUAL :]
        return flow.view(2, 2, *shape), dual.view(2, 4, *shape), data

    def round(self, number: int, listed: int) -> None:
        """One outer iteration of the first ``listed`` pairs of the list."""
        replayed = self._rounds.setdefault((number, listed), Replayed(self._graphs))
        replayed(lambda: self._launch(number, listed))

    def _launch(self, number: int, listed: int) -> None:
        params, who = self.params, (self.pairs, self.moving, self.turns)
        if params.median_filtering > 1:
            uv, _, data = self.views(number)
            kernels.smooth[self.tiles[number], listed, 2](
                uv, *who, data[0].numel(), *self.shapes[number], SIZE=params.median_filtering,
                **kernels.TILE, **kernels.ROUNDED,
            )  # fmt: skip
            kernels.turn_flow[listed,](*who)
        for made in range(0, params.inner_iterations, iteration.STEPS):
            self._iterate(number, listed, min(iteration.STEPS, params.inner_iterations - made), iteration.MANY)
        self._iterate(number, listed, iteration.STEPS, iteration.STEPS)  # what is left to be made again

    def _iterate(self, number: int, listed: int, steps: int, upto: int) -> None:
        uv, dual, data = self.views(number)
        (height, width, pitch), tiles, params = self.shapes[number], self.parts[number], self.params
        given = (self.pairs, self.moving, self.turns, self.changes)
        iteration.iterate[tiles, listed](
            uv, dual, data, *given, data[0].numel(), self.count + 1, height, width, pitch, tiles, steps, upto,
            params.lambda_ * params.theta, params.theta, params.tau / params.theta,
            **iteration.TILE, **kernels.ROUNDED,
        )  # fmt: skip
        iteration.judge[listed,](
            *given, self.count + 1, tiles, steps, upto, params.epsilon**2 * height * width,
            STEPS=iteration.STEPS, TILES=triton.next_power_of_2(tiles),
        )  # fmt: skip

    def level(self, number: int, first: Tensor, texture: Tensor, u: Tensor, v: Tensor) -> FusedLevel:
        """A level of a batch: first frames [N, H, W], second ones and their derivatives [3, N, H, W], flow so far."""
        return FusedLevel(self, number, first, texture, u, v)


class FusedLevel:
    """One pyramid level of a batch of pairs, solved by the kernels; see ``Level``."""

    def __init__(self, space: LevelMemory, number: int, first: Tensor, texture: Tensor, u: Tensor, v: Tensor) -> None:
        self.space, self.number = space, number
        self.first, self.texture = first.contiguous(), texture.contiguous()
        self.count, _, self.width = first.shape
        self.uv, dual, self.data = space.views(number)
        self.uv[0, 0, : self.count, :, : self.width] = u
        self.uv[0, 1, : self.count, :, : self.width] = v
        dual[0].zero_()
        space.turns.zero_()

    def linearise(self) -> None:
        """Warp the second frames by the flow and start a new warp."""
        space = self.space
        kernels.linearise[space.tiles[self.number], self.count](
            self.uv, space.turns, self.first, self.texture, self.data, self.first.numel(), self.data[0].numel(),
            *space.shapes[self.number], **kernels.TILE, **kernels.ROUNDED,
        )  # fmt: skip
        space.moving[: self.count] = iteration.MANY
        self._list(space.numbers[: self.count])

    def advance(self) -> None:
        """One outer iteration of the pairs that still move."""
        self.space.round(self.number, self.listed)

    def settled(self) -> bool:
        """Whether no pair moves any more; those that do are listed. Waits for the device."""
        moving = torch.nonzero(self.space.moving[: self.count]).flatten()
        if 0 < len(moving) < self.listed:
            self._list(moving)
        return not len(moving)

    def flow(self) -> tuple[Tensor, Tensor]:
        """Components [N, H, W] of the flow."""
        turned = self.space.turns[0, : self.count, None, None] != 0
        u, v = torch.where(turned, self.uv[1, :, : self.count], self.uv[0, :, : self.count])[..., : self.width]
        return u, v

    def _list(self, pairs: Tensor) -> None:
        """Let launches be for these pairs; the list is filled up with a number that never moves."""
        space = self.space
        self.listed = min(space.count, room(len(pairs)))
        space.pairs[: len(pairs)] = pairs
        space.pairs[len(pairs) : self.listed] = space.count


_kept: dict[torch.device, LevelMemory] = {}


@contextmanager
def workspace(count: int, sizes: Sequence[Size], params: TVL1Params, device: torch.device) -> Iterator[LevelMemory]:
    """Memory for a batch, kept for the next like it where it is small; a thread that comes meanwhile has its own."""
    space: LevelMemory | None = _kept.pop(device, None)
    if space is None or not space.serves(count, sizes, params):
        space = None  # before another is made
        space = LevelMemory(room(count), sizes, params, device, cuda_graphs(device) if device.type == "cuda" else None)
    yield space
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    if space.nbytes <= _KEPT:
        _kept[device] = space


def forget() -> None:
    """Give up what is kept."""
    _kept.clear()
