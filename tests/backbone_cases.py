"""What holds for every backbone: features stop where asked, shapes are as promised, a batch is its clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdcache.backbones.base import Backbone
from kdcache.errors import OptionError


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def images(*shape: int, seed: int = 0) -> Tensor:
    """Random uint8 pixels."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def modules_run(net: Backbone, x: Tensor, layer: str) -> set[str]:
    """Names of the leaf modules that ``features`` calls."""
    called: set[str] = set()
    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]

    def note(name):
        return lambda *_: called.add(name)

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in leaves]
    try:
        with torch.inference_mode():
            net.features(x, layer)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def check_stops(net: Backbone, x: Tensor, layer: str, runs: str, never: tuple[str, ...]) -> None:
    """``features`` up to ``layer`` runs modules under ``runs`` and none under ``never``; the whole network runs all."""
    called = modules_run(net, x, layer)
    assert any(name.startswith(runs) for name in called)
    assert not [name for name in called if name.startswith(never)]
    everything = modules_run(net, x, "logits")
    assert all(any(name.startswith(prefix) for name in everything) for prefix in never)


def check_batch(net: Backbone, x: Tensor, layer: str) -> None:
    """Sixteen clips at once give what each gives alone, to 1e-5."""
    assert len(x) == 16
    with torch.inference_mode():
        together = net.features(x, layer)
        alone = torch.cat([net.features(clip[None], layer) for clip in x])
    assert relative(together, alone) < 1e-5
    assert relative(together[1:], together[:-1]) > 1e-3  # the clips do differ


def check_misuse(net: Backbone, good: Tensor, channels: int) -> None:
    """Unknown layers, wrong channels and wrong types each get a sentence."""
    with pytest.raises(OptionError, match="Unknown layer 'layer5': did you mean 'layer"):
        net.features(good, "layer5")
    with pytest.raises(OptionError, match=r"got torch\.uint8"):
        net.features(good.to(torch.uint8), "layer1")
    with pytest.raises(OptionError, match=r"\[1, 2, 3\]"):
        net.features(torch.zeros(1, 2, 3), "layer1")
    with pytest.raises(OptionError, match=f"H, W, {channels}"):
        net.prepare(torch.zeros(1, 8, 32, 32, channels + 1, dtype=torch.uint8))
    with pytest.raises(OptionError, match=r"got torch\.int64"):
        net.prepare(torch.zeros(1, 8, 32, 32, channels, dtype=torch.int64))


def batch_norms(net: nn.Module) -> int:
    """How many batch norms a network still has."""
    return sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in net.modules())
