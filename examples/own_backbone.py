"""A network of one's own as a backbone: ``kdcache extract --backbone own_backbone:build --layer blocks …``.

Called as a script it does the same from Python: ``python examples/own_backbone.py clips.csv videos/ out/``.
"""

import sys

import torch
from torch import nn

import kdcache
from kdcache.backbones import Custom


class SmallNet(nn.Module):
    """What you have trained; any Python code will do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(nn.ReLU(), nn.Conv3d(16, 32, 3, padding=1))
        self.classify = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 3, T, H, W]`` → class scores ``[B, 10]``."""
        scores: torch.Tensor = self.classify(self.blocks(self.stem(x)).mean((2, 3, 4)))
        return scores


def build() -> Custom:
    """The network with its weights, and what a module does not say of itself."""
    torch.manual_seed(0)  # yours: net.load_state_dict(torch.load("mine.pth", weights_only=True))
    return Custom(net=SmallNet(), takes="CTHW", frames=8, size=64, axes={"blocks": "CTHW"}, pooled="blocks")


if __name__ == "__main__":
    kdcache.backbones.register("smallnet", build)
    clips, videos, out = sys.argv[1:]
    print(kdcache.extract(clips, videos, out, streams=["smallnet/blocks", "smallnet/pool"], workers=2))
