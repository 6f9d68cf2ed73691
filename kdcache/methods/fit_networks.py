"""The network that is fitted: a backbone with a classifier for the manifest's classes, at its start."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache import backbones
from kdcache.backbones import vacnn
from kdcache.backbones.base import Backbone
from kdcache.backbones.checkpoint import load_state_dict, random_init
from kdcache.backbones.framewise import Framewise
from kdcache.backbones.metadata import FitMetadata, read_metadata
from kdcache.backbones.published import TABLE
from kdcache.backbones.weights import RANDOM, find, random_seed, resolve
from kdcache.methods.fit_options import Options


class Classifier(nn.Module):
    """A backbone as the training loop takes it: what extraction feeds it → ``(scores [B, C], pooled features)``.

    Scores are the classifier on the mean of the images' pooled features: the mean of their scores, for it is linear.
    """

    def __init__(self, net: Backbone, dropout: float) -> None:
        super().__init__()
        volumes = any(p.ndim == 5 for p in net.parameters())
        self.net = net.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``uint8 [B, T, H, W, C]`` (skeleton images also float32) → scores, and ``[B, T, d]`` or ``[B, d]``."""
        pooled = self.net.features(self.net.prepare(x), "pool")
        kept = self.dropout(pooled)
        if isinstance(self.net, Framewise):
            kept = kept.mean(1)
        named = dict(self.net.named_parameters())
        weight, bias = (named[name] for name in self.net.classifier)
        return F.linear(kept, weight.flatten(1), bias), pooled


def start(
    name: str, classes: int, options: Options, seed: int, say: Callable[[str], None]
) -> tuple[Backbone, FitMetadata | None]:
    """A backbone as its training starts, and the facts of the fitted weights that it starts from, if it does.

    Raises:
        WeightsError: a checkpoint that is missing, or of another network.
    """
    init = options.init or ("" if name in TABLE else f"{RANDOM}{seed}")
    if (drawn := random_seed(init)) is not None:
        net, facts = _random(name, classes, drawn), None
        imagenet = load_state_dict(find(name, options.imagenet)) if options.imagenet is not None else None
        if isinstance(net, vacnn.VACNN):
            vacnn.start(net, drawn, imagenet)
        say(f"{name} starts from {options.imagenet or f'random weights ({init})'}")
    else:
        file = resolve(name, init or None).path
        assert file is not None
        net, facts = backbones.build(name, file, num_classes=classes), read_metadata(file)
        say(f"{name} starts from {file}, with a new classifier for {classes} classes")
    fresh = random_init(net, seed)
    net.load_state_dict({k: v for k, v in fresh.items() if k in net.classifier}, strict=False)
    return net, facts


def _random(name: str, classes: int, seed: int) -> Backbone:
    """As ``build`` with ``random:SEED``, without its warning: here random weights are but a start."""
    entry = backbones.REGISTRY[name]
    net: Backbone = importlib.import_module(f"kdcache.backbones.{entry.module}").make(
        entry.input, classes, **entry.options
    )
    net.load_state_dict(random_init(net, seed))
    return net
