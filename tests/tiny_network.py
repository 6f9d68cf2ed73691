"""The smallest backbone that looks at images, for tests that fit one."""

from __future__ import annotations

import torch
from torch import nn

from kdcache.backbones.framewise import Framewise


class Tiny(Framewise):
    """One convolution and a classifier on its mean, with a batch norm between them unless ``norm`` is off."""

    classifier = ("fc.weight", "fc.bias")
    order = ("pool", "logits")
    owners = {"logits": "fc"}  # noqa: RUF012

    def __init__(self, classes, norm=True):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8) if norm else nn.Identity()
        self.fc = nn.Linear(8, classes)

    def endpoints(self, images):
        pooled = torch.relu(self.bn(self.conv(images))).mean((2, 3))
        yield "pool", pooled
        yield "logits", self.fc(pooled)
