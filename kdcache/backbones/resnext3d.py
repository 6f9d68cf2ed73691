"""3-D ResNeXt-101 as MARS uses it, on RGB or on flow.

Sources: Hara et al., "Can spatiotemporal 3D CNNs retrace the history of 2D CNNs and ImageNet?", CVPR 2018 (cardinality
32, blocks 3, 4, 23, 3); Crasto et al., "MARS: Motion-augmented RGB stream for action recognition", CVPR 2019, and its
code (craston/MARS) for parameter names and preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kdcache.backbones import resnext3d_layers as plan
from kdcache.backbones.base import Chain, collected
from kdcache.backbones.framewise import RESIDUAL_GAIN, drop, normalised, stem
from kdcache.backbones.i3d import SameConv3d
from kdcache.backbones.resnet_layers import STAGES, known
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.errors import OptionError, unknown

BLOCKS = (3, 4, 23, 3)
GROUPS = 32
RGB_MEAN = (114.7748, 107.7354, 99.4750)  # of ActivityNet, on 0 … 255; deviation 1 [code]
FLOW_MEAN = (127.5, 127.5)


class Bottleneck(nn.Module):
    """1×1×1, grouped 3×3×3 (which strides), 1×1×1 to twice the width, each with batch norm; residual.

    For a kernel of 1, SAME padding is none; that class is the one to which frozen networks give a fast engine.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv3d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=1, groups=GROUPS, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = SameConv3d(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 2 * width:
            self.downsample = nn.Sequential(
                SameConv3d(channels, 2 * width, 1, stride=stride, bias=False), nn.BatchNorm3d(2 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, T, H, W]`` → ``[B, 2 width, T/s, H/s, W/s]``, rounded up."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


def _stage(name: str) -> nn.Sequential:
    """One of ``layer1`` … ``layer4``."""
    i = STAGES.index(name)
    width, before = 128 << i, 64 if i == 0 else 128 << i
    first = Bottleneck(before, width, 1 if i == 0 else 2)
    return nn.Sequential(first, *(Bottleneck(2 * width, width, 1) for _ in range(1, BLOCKS[i])))


class _Stages(nn.Module):
    """Consecutive stages and the classifier: what the whole network and its trainable tail have in common."""

    classifier: tuple[str, ...] = ("fc.weight", "fc.bias")
    order: tuple[str, ...]

    def onwards(self, x: Tensor, after: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """Name and output of each layer behind what gave ``x``, in turn, computed only when asked for; ``after``: that
        is a layer of this network."""
        for name in self.order[0 if after is None else self.order.index(after) + 1 :]:
            if name == "pool":
                x = x.mean((2, 3, 4))
            else:
                x = self.get_submodule("fc" if name == "logits" else name)(x)
            yield name, x


class ResNeXt3D(_Stages, Chain):
    """3-D ResNeXt-101 on ``float [B, C, T, H, W]``: C 3 (RGB) or 2 (flow); T 16 or 64 and 112 pixels as published.

    Published checkpoints load unchanged. ``prepare`` takes ActivityNet's mean off RGB and 127.5 off 8-bit flow, and
    divides by nothing. Any T and size work: the last average covers what is left (published sizes leave exactly its
    window).

    Layers: ``layer1`` … ``layer4`` [C, t, h, w], ``pool`` [2048], ``logits``.
    """

    def __init__(self, num_classes: int = 400, channels: int = 3, spec: InputSpec | None = None) -> None:
        super().__init__()
        if channels not in (2, 3):
            raise OptionError(f"ResNeXt3D takes 3 channels (RGB) or 2 (flow); got {channels}.")
        self.conv1 = nn.Conv3d(channels, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        for name in STAGES:
            self.add_module(name, _stage(name))
        self.fc = nn.Linear(plan.WIDTH, num_classes)
        self.order = plan.ORDER
        self.channels, self.num_classes = channels, num_classes
        self.input = spec or InputSpec("rgb" if channels == 3 else "flow", frames=16, size=112, resize=112)

    def init_constant(self, name: str) -> float | None:
        """Residual branches start with a gain of 1/4, so that random activations keep their scale."""
        return RESIDUAL_GAIN if name.endswith("bn3.weight") else None

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer → its shape for one standard clip (16 frames at 112 pixels)."""
        n, size = self.input.frames, self.input.size
        return {name: plan.shape(name, self.channels, n, size, self.num_classes) for name in self.order}

    def resolve(self, layer: str) -> str:
        """``layer`` itself; ``OptionError`` for an unknown one."""
        return known(layer, self.order)

    def endpoints(self, x: Tensor, after: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and output for ``[B, C, T, H, W]`` in turn, computed only when asked for; ``after``: x is
        that layer's output."""
        return self.onwards(stem(self, x) if after is None else x, after)

    def several(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Output of each layer for ``float [B, C, T, H, W]``."""
        wanted = [self.resolve(layer) for layer in layers]
        if x.ndim != 5 or x.shape[1] != self.channels or not x.is_floating_point():
            raise OptionError(
                f"This ResNeXt3D takes float batches [B, {self.channels}, T, H, W] from prepare(); got {x.dtype} "
                f"{list(x.shape)}: resnext101 is for 3-channel RGB, resnext101-flow for 2-channel flow."
            )
        return collected(self.endpoints(x), wanted)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` → class scores ``[B, num_classes]``."""
        return self.features(x, "logits")

    def prepare(self, x: Tensor) -> Tensor:
        """``uint8 [B, T, H, W, C]`` → ``float32 [B, C, T, H, W]`` less its mean, channels-last in memory."""
        if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != self.channels:
            raise OptionError(
                f"This ResNeXt3D takes uint8 [B, T, H, W, {self.channels}]; got {x.dtype} {list(x.shape)}: "
                f"check the modality and the order of dimensions."
            )
        mean = RGB_MEAN if self.channels == 3 else FLOW_MEAN
        return normalised(x, mean, (1.0,) * self.channels).permute(0, 4, 1, 2, 3)

    def truncate(self, layer: str) -> None:
        """Drop, in place, the modules that only later layers need."""
        keep = self.order.index(self.resolve(layer)) + 1
        for name in self.order[keep:]:
            drop(self, "", "fc" if name == "logits" else name)
        self.order = self.order[:keep]


class ResNeXt3DTail(_Stages):
    """The stages behind ``input_layer`` as a trainable head for cached maps, by default ``layer4``, and the classifier.

    Parameter names are those of the whole network, so that its checkpoint initialises the tail by name. Batch norm
    follows ``.train()`` and ``.eval()``: the caller's choice.
    """

    def __init__(self, num_classes: int, input_layer: str = "layer3") -> None:
        if input_layer not in STAGES[:-1]:
            raise unknown("input layer", input_layer, STAGES[:-1])
        super().__init__()
        self.order = plan.ORDER[plan.ORDER.index(input_layer) + 1 :]
        for name in self.order[:-2]:
            self.add_module(name, _stage(name))
        self.fc = nn.Linear(plan.WIDTH, num_classes)

    def endpoints(self, x: Tensor, after: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """Name and output of each layer for maps ``[B, C, t, h, w]`` of the input layer, or of ``after``."""
        return self.onwards(x, after)

    def resolve(self, layer: str) -> str:
        """``layer`` itself; ``OptionError`` for one that is not behind the input layer."""
        return known(layer, self.order)


def make(spec: InputSpec, num_classes: int | None = None) -> ResNeXt3D:
    """The ResNeXt-101 that takes ``spec``, with Kinetics' 400 classes unless told otherwise."""
    return ResNeXt3D(num_classes or 400, spec.channels, spec)
