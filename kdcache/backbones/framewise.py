"""What the networks that look at single images have in common: TSM, VA-CNN's classifier and the ResNets."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kdcache.backbones.base import Chain, collected
from kdcache.backbones.resnet_layers import STAGES, known
from kdcache.errors import OptionError

RESIDUAL_GAIN = 0.25  # of random residual branches: with 1, activations double their variance in every block
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Framewise(Chain):
    """A network run on each image of ``float [B, T, C, H, W]``; every output keeps ``[B, T, …]``.

    Attributes:
        order: layer names in the order of computation.
        channels: of each image.
        mean, scale: images become ``(x - mean) × scale``; of ``uint8`` values, one number for each channel.
        owners: layer → dotted name of the module that it is the first to need, for ``truncate``.
    """

    order: tuple[str, ...]
    channels: int = 3
    mean: Sequence[float] = tuple(255 * m for m in IMAGENET_MEAN)
    scale: Sequence[float] = tuple(1 / (255 * s) for s in IMAGENET_STD)
    owners: dict[str, str]
    last_norm: str = "bn3"  # the batch norm that ends each residual branch

    def init_constant(self, name: str) -> float | None:
        """Residual branches start with a gain of 1/4, so that random activations keep their scale."""
        return RESIDUAL_GAIN if name.endswith(f"{self.last_norm}.weight") else None

    def endpoints(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and output for images ``[N, C, H, W]`` in turn, computed only when asked for."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """``OptionError`` for a batch that is not ``float [B, T, C, H, W]`` of this network's channels."""
        if x.ndim != 5 or x.shape[2] != self.channels or not x.is_floating_point():
            raise OptionError(
                f"{type(self).__name__} takes float batches [B, T, {self.channels}, H, W] from prepare(); got "
                f"{x.dtype} {list(x.shape)}: check the modality and the order of dimensions."
            )

    def resolve(self, layer: str) -> str:
        """``layer`` itself; ``OptionError`` for an unknown one."""
        return known(layer, self.order)

    def several(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Output of each layer, ``[B, T, …]``, for ``float [B, T, C, H, W]``."""
        wanted = [self.resolve(layer) for layer in layers]
        self.check(x)
        outputs = collected(self.endpoints(x.flatten(0, 1)), wanted)
        return [output.reshape(len(x), -1, *output.shape[1:]) for output in outputs]

    def forward(self, x: Tensor) -> Tensor:
        """``float [B, T, C, H, W]`` → class scores ``[B, num_classes]``, the mean over images."""
        return self.features(x, "logits").mean(1)

    def prepare(self, x: Tensor) -> Tensor:
        """``uint8 [B, T, H, W, C]`` → normalised ``float32 [B, T, C, H, W]``, channels-last in memory."""
        if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != self.channels:
            raise OptionError(
                f"{type(self).__name__} takes uint8 [B, T, H, W, {self.channels}]; got {x.dtype} {list(x.shape)}: "
                f"check the modality and the order of dimensions."
            )
        return normalised(x, self.mean, self.scale).permute(0, 1, 4, 2, 3)

    def truncate(self, layer: str) -> None:
        """Drop, in place, the modules that only later layers need."""
        keep = self.order.index(self.resolve(layer)) + 1
        for name in self.order[keep:]:
            if name in self.owners:
                parent, _, child = self.owners[name].rpartition(".")
                drop(self, parent, child)
        self.order = self.order[:keep]


def drop(net: nn.Module, parent: str, child: str) -> None:
    """Delete the submodule ``parent.child``, if it is still there, looking only at modules (never at attributes)."""
    for part in filter(None, parent.split(".")):
        module = net._modules[part]
        assert module is not None
        net = module
    net._modules.pop(child, None)


def normalised(x: Tensor, mean: Sequence[float], scale: Sequence[float]) -> Tensor:
    """``(x - mean) × scale`` in float32, by the last dimension."""
    return x.float().sub_(constant(tuple(mean), x.device)).mul_(constant(tuple(scale), x.device))


@functools.cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as float32 on a device, copied there once: a GPU waits for each copy, and a CUDA graph cannot hold one.

    No buffer of a network, for these are rounded with its parameters when it runs in half precision.
    """
    with torch.inference_mode(False):  # training may ask for them next
        return torch.tensor(values, dtype=torch.float32, device=device)


def trunk(net: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Stages and pooled features of one of torchvision's ResNets, computed only when asked for."""
    x = stem(net, images)
    for name in STAGES:
        x = net.get_submodule(name)(x)
        yield name, x
    yield "pool", x.mean((2, 3))


def stem(net: nn.Module, images: Tensor) -> Tensor:
    """What comes before the first stage: convolution, batch norm, ReLU, max pool."""
    for name in ("conv1", "bn1", "relu", "maxpool"):
        images = net.get_submodule(name)(images)
    return images
