"""Random weights: deep residual networks keep their scale, so that demonstrations fit in float16."""

from __future__ import annotations

import pytest
import torch
from backbone_cases import images

from kdcache import backbones

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["tsm-resnet50", "vacnn", "resnet34", "resnext101"])
def test_random_features_fit_in_float16(name):
    net = backbones.build(name, "random:0")
    frames, size = {"tsm-resnet50": 8, "resnext101": 8}.get(name, 1), 224 if name == "vacnn" else 64
    x = net.prepare(images(2, frames, size, size, 3))
    with torch.inference_mode():
        scores = net.features(x, "logits").flatten(1)
        deep = net.features(x, "layer4")
    assert torch.isfinite(deep.half()).all()
    assert deep.std() > 0.1
    assert (scores[0] - scores[1]).abs().max() > 1e-2 * scores.abs().max()  # the input still shows
    if name == "vacnn":
        assert not net.features(x, "params").any()  # seen as it is
