"""Networks of a user's own, as a module of theirs would hold them."""

from __future__ import annotations

import os

import torch
from torch import nn

from kdcache.backbones import Custom

EXHAUSTED = "OWN_NETWORKS_EXHAUSTED"
"""While this variable is set, in this process or where a worker was started from, a forward runs out of memory."""
BROKEN = "OWN_NETWORKS_BROKEN"
"""While this variable is set a forward raises an exception that no library raises."""


class Video(nn.Module):
    """A small 3-D network with Python code that no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 6, 3, padding=1)
        self.second = nn.Conv3d(6, 8, 3, stride=(1, 2, 2))
        self.relu = nn.ReLU()
        self.classify = nn.Linear(8, 5)

    def forward(self, x):
        if os.environ.get(EXHAUSTED) and (x != x[..., :1, :1]).any():  # plain ones only ask for shapes
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if os.environ.get(BROKEN) and (x != x[..., :1, :1]).any():
            raise KeyError("a key of the network")
        x = self.relu(self.first(x))
        if x.mean() > 1e9:  # depends on the data
            x = -x
        x = self.relu(self.second(x))
        return self.classify(x.mean((2, 3, 4)))


def video() -> Custom:
    torch.manual_seed(0)
    return Custom(
        net=Video(),
        takes="CTHW",
        frames=4,
        size=32,
        axes={"first": "CTHW", "second": "CTHW", "*": "D"},
        pooled="second",
    )


def changing() -> Custom:
    """Other weights each time."""
    torch.seed()
    return Custom(net=Video(), takes="CTHW", frames=4, size=32, axes={"*": "CTHW"}, pooled="second")


def images() -> Custom:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.Flatten(2))
    return Custom(
        net=net, takes="CHW", frames=3, size=32, axes={"0": "TCHW"}, mean=(0, 0, 0), std=(1, 1, 1), pooled="0"
    )


def module() -> nn.Module:
    """Not what a builder must return."""
    return Video()


class Early(nn.Module):
    """What is registered last runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv3d(4, 4, 3)
        self.stem = nn.Conv3d(3, 4, 3)

    def forward(self, x):
        return self.block(self.stem(x))


def early() -> Custom:
    torch.manual_seed(0)
    return Custom(net=Early(), takes="CTHW", frames=6, size=32, axes={"*": "CTHW"})


class TimeFirst(nn.Module):
    """Its blocks give time first."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=False, dropout=0)

    def forward(self, x):
        sequence = x.mean((1, 3, 4)).T[:, :, None].expand(-1, -1, 4)  # [T, B, 4]
        return self.block(sequence).mean(0)


def time_first() -> Custom:
    torch.manual_seed(0)
    return Custom(net=TimeFirst(), takes="CTHW", frames=2, size=32, axes={"block": "TD", "output": "D"})


class Named(nn.Module):
    """Its parts have the names that a fitted file uses."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Conv3d(3, 4, 3), nn.Conv3d(4, 2, 1)

    def forward(self, x):
        return self.head(self.net(x))


def named() -> Custom:
    torch.manual_seed(0)
    return Custom(net=Named(), takes="CTHW", frames=4, size=32, axes={"*": "CTHW"})


def broken() -> Custom:
    raise KeyError("no such file")
