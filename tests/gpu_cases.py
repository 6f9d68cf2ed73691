"""What runs on the CPU everywhere, and on a GPU where there is one (``pytest -m gpu``): devices and networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache import backbones

ON_EACH = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

NETWORKS = [
    ("i3d-rgb", "mixed4a", 16, 64),
    ("i3d-flow", "mixed4a", 16, 64),
    ("tsm-resnet50", "pool", 8, 64),
    ("resnet34", "layer4", 2, 64),
    ("resnext101", "layer4", 16, 112),
    ("vacnn", "pool", 1, 224),
]
"""Backbone, layer, frames and side of its inputs."""


def pixels(net: backbones.Backbone, frames: int, size: int, clips: int = 2) -> torch.Tensor:
    shape = (clips, frames, size, size, net.input.channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm())
