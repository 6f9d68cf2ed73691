"""Dropout of several heads at once: each head's masks are drawn from its own random numbers, as it would draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GivenDropout(nn.Module):
    """In the place of an ``nn.Dropout``: multiplies by masks that it is given, or notes which it would need."""

    def __init__(self, name: str, p: float, source: MaskSource) -> None:
        super().__init__()
        self.name, self.p, self.source = name, p, source

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times the next mask of a training pass."""
        if not self.training:
            return x
        if self.source.noting is not None:
            self.source.noting.append((self.name, torch.ones_like(x)))
            return x
        return x * next(self.source.masks) if self.source.used else x


Wanted = tuple[str, Tensor]
"""Name of a dropout layer, and ones like what it takes: random numbers are drawn in the order of its memory."""


@dataclass
class MaskSource:
    """The masks of a pass, in the order in which dropout layers ask for them."""

    used: bool = False
    """Off: no head drops anything."""
    masks: Iterator[Tensor] = field(default_factory=lambda: iter(()))
    noting: list[Wanted] | None = None
    """Where set, which masks are asked for is noted instead."""


def draw(modules: Sequence[nn.Module], rng: list[Tensor], wanted: Sequence[Wanted]) -> list[Tensor]:
    """The masks of one step, ``[heads, …]`` each: 0, or 1 / (1 - p).

    Args:
        modules: of the heads, whose dropout layers have each a share p.
        rng: states of each head's random numbers, which are replaced by those after the step.
        wanted: what dropout layers take, in their order.
    """
    device = wanted[0][1].device
    of_heads: list[list[Tensor]] = []
    for head, module in enumerate(modules):
        set_random_state(rng[head], device)
        of_heads.append([])
        for name, ones in wanted:
            layer = module.get_submodule(name)
            assert isinstance(layer, (nn.Dropout, GivenDropout)), name
            of_heads[-1].append(F.dropout(ones, layer.p, training=True))
        rng[head] = random_state(device)
    return [torch.stack(each) for each in zip(*of_heads, strict=True)]


@contextmanager
def given_masks(module: nn.Module) -> Iterator[MaskSource]:
    """Inside, dropout layers within ``module`` take the masks of the source."""
    source = MaskSource()
    found = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.Dropout)]
    for name, child in found:
        module.set_submodule(name, GivenDropout(name, child.p, source))
    try:
        yield source
    finally:
        for name, child in found:
            module.set_submodule(name, child)


def random_state(device: torch.device) -> Tensor:
    """Of the device's random numbers."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """As ``random_state`` gave it."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
