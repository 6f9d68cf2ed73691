"""A frozen forward copies nothing of its own to the device: a GPU would wait for it in every batch."""

from __future__ import annotations

import pytest
import torch

from kdcache import backbones
from kdcache.backbones.framewise import constant, normalised

TAKES_ARRAYS = [name for name in backbones.names() if backbones.input_spec(name).modality != "rgb+flow"]


@pytest.mark.parametrize("name", TAKES_ARRAYS)
def test_no_constants_are_made_in_a_forward(name, monkeypatch):
    net, spec = backbones.outline(name), backbones.input_spec(name)
    side = 112 if name.startswith("resnext") else 224
    x = torch.empty(2, spec.frames, side, side, spec.channels, dtype=torch.uint8, device="meta")

    def forward():
        with torch.inference_mode():
            return net.features(net.prepare(x), net.resolve(spec.default_layer))

    shape = forward().shape

    def made(*args, **options):
        raise AssertionError("a tensor was made of numbers of the host")

    for owner, function in (
        (torch, "tensor"),
        (torch, "as_tensor"),
        (torch, "from_numpy"),
        (torch.Tensor, "new_tensor"),
    ):
        monkeypatch.setattr(owner, function, made)
    assert forward().shape == shape


def test_constants_first_asked_for_in_inference_can_be_trained_with():
    constant.cache_clear()
    with torch.inference_mode():
        normalised(torch.zeros(1, 3), (1.0, 2.0, 3.0), (0.5, 0.5, 0.5))
    weight = torch.ones(3, requires_grad=True)
    (weight * constant((1.0, 2.0, 3.0), torch.device("cpu"))).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]
