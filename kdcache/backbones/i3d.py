"""I3D, the inflated Inception-V1 of Carreira & Zisserman (CVPR 2017), and its trainable tail.

Parameter names and shapes are those of the published PyTorch checkpoints (``rgb_imagenet.pt``, ``flow_imagenet.pt``),
which therefore load unchanged. Layer names, aliases and shapes are in ``i3d_layers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcache.backbones import i3d_layers as plan
from kdcache.backbones.base import Chain, collected, scaled_video
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.errors import OptionError, unknown


class SameConv3d(nn.Conv3d):
    """3-D convolution with TensorFlow's SAME padding, which depends on the input size.

    ``engine`` does the arithmetic: torch's choice, unless a frozen network asks for a particular one.
    """

    engine: Callable[..., Tensor] = staticmethod(F.conv3d)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` → ``[B, C', ceil(T/s), ceil(H/s), ceil(W/s)]``."""
        pads = [plan.same_padding(n, k, s) for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        if any(front != back for front, back in pads):  # torch pads both sides alike, so pad here
            x = F.pad(x, [p for pair in reversed(pads) for p in pair])
            pads = [(0, 0)] * 3
        return self.engine(x, self.weight, self.bias, self.stride, [front for front, _ in pads])


class SameMaxPool3d(nn.Module):
    """3-D max pooling with TensorFlow's SAME padding. Inputs follow a ReLU, so padding by zero or by -inf is one.

    A window that sticks out at the back alone (even sizes) is what ``ceil_mode`` does: no padded copy is made.
    """

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` → ``[B, C, ceil(T/s), ceil(H/s), ceil(W/s)]``."""
        front = [plan.same_padding(n, k, s)[0] for n, k, s in zip(x.shape[2:], self.kernel, self.stride, strict=True)]
        return F.max_pool3d(x, self.kernel, self.stride, front, ceil_mode=True)


class Unit3D(nn.Module):
    """Convolution, batch norm (eps 1e-3) and ReLU; as a ``classifier``, a biased convolution alone."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, classifier: bool = False) -> None:
        super().__init__()
        self.conv3d = SameConv3d(channels, out, kernel, stride, bias=classifier)
        self.bn: nn.Module | None = None if classifier else nn.BatchNorm3d(out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` → ``[B, out, T', H', W']``."""
        x = self.conv3d(x)
        return x if self.bn is None else F.relu(self.bn(x), inplace=True)


class Inception(nn.Module):
    """Four branches side by side: 1×1×1; 1×1×1 → 3×3×3, twice; 3×3×3 max pool → 1×1×1."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit3D(channels, b0)
        self.b1a = Unit3D(channels, b1a)
        self.b1b = Unit3D(b1a, b1b, 3)
        self.b2a = Unit3D(channels, b2a)
        self.b2b = Unit3D(b2a, b2b, 3)
        self.b3a = SameMaxPool3d((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(channels, b3b)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` → ``[B, b0 + b1b + b2b + b3b, T, H, W]``."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


def _block(name: str, channels: int) -> nn.Module:
    if name in plan.CONVS:
        return Unit3D(channels, *plan.CONVS[name])
    if name in plan.POOLS:
        return SameMaxPool3d(*plan.POOLS[name])
    return Inception(channels, plan.MIXED[name])


def _average(x: Tensor) -> Tensor:
    """The 2×7×7 average pool with stride 1, its window as wide as the space left: ``[B, C, t-1, 1, 1]`` in float32."""
    plan.pooled_steps(x.shape[2])
    space = x.mean((3, 4), keepdim=True, dtype=torch.float32)
    return (space[:, :, 1:] + space[:, :, :-1]) / 2


class _Stack(nn.Module):
    """Consecutive blocks of I3D and its classifier: what the whole network and its trainable tail have in common."""

    classifier: tuple[str, ...] = ("logits.conv3d.weight", "logits.conv3d.bias")

    def __init__(self, blocks: Sequence[str], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.order = (*blocks, *plan.HEAD)
        for name in blocks:
            self.add_module(name, _block(name, channels))
            channels = plan.width(name, channels)
        self.dropout = nn.Dropout(dropout)
        self.logits = Unit3D(channels, num_classes, classifier=True)

    def endpoints(self, x: Tensor, after: str | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and output in turn, computed only when asked for; ``after``: x is that layer's output."""
        dtype = x.dtype
        for name in self.order[0 if after is None else self.order.index(after) + 1 :]:
            if name == "pool":
                x = _average(x)
                yield name, x.mean((2, 3, 4))
            elif name == "Logits":
                yield name, self.logits(self.dropout(x).to(dtype))[..., 0, 0]
            else:
                x = self.get_submodule(name)(x)
                yield name, x

    def resolve(self, layer: str) -> str:
        """The published name behind ``layer`` (a name or an alias); ``OptionError`` for an unknown one."""
        return plan.resolve(layer, self.order)


class I3D(_Stack, Chain):
    """The whole network: ``float [B, C, T, H, W]`` in [-1, 1] → class scores ``[B, num_classes]``.

    3 channels are RGB, 2 are flow (x, y) as 8-bit images of displacements clipped to ±20 px. Any size works: the last
    average pool covers the space that is left. ``pool`` and ``Logits`` need 9 frames or more.

    Layers: the published endpoints; ``pool``, the average pool's mean over time, ``[1024]`` (the classifier applied to
    it gives the clip's scores); ``Logits``, scores at each time step, ``[classes, time]``.
    """

    def __init__(self, num_classes: int = 400, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__(plan.BLOCKS, in_channels, num_classes, dropout)
        self.in_channels, self.num_classes = in_channels, num_classes
        self.input = InputSpec("rgb" if in_channels == 3 else "flow", default_layer="mixed4a")

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer name, aliases too → shape of its output for one 32×224×224 input (no batch dimension)."""
        n, t, s = self.in_channels, self.input.frames, self.input.size
        return {name: plan.shape(name, n, t, s, self.num_classes) for name in plan.with_aliases(self.order)}

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` → class scores ``[B, num_classes]``, the mean of ``Logits`` over time."""
        return self.features(x, "Logits").mean(2)

    def several(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Output of each layer for ``float [B, C, T, H, W]``; ``pool`` and ``Logits`` need enough frames."""
        wanted = [self.resolve(layer) for layer in layers]
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise OptionError(
                f"This I3D takes float batches [B, {self.in_channels}, T, H, W]; got {list(x.shape)}: "
                f"i3d-rgb is for 3-channel RGB, i3d-flow for 2-channel flow."
            )
        return collected(self.endpoints(x), wanted)

    def prepare(self, x: Tensor) -> Tensor:
        """``uint8 [B, T, H, W, C]`` → ``float32 [B, C, T, H, W]`` in [-1, 1], for RGB and 8-bit flow alike."""
        return scaled_video(x, self.input)

    def truncate(self, layer: str) -> None:
        """Drop, in place, the blocks beyond ``layer``."""
        keep = self.order.index(self.resolve(layer)) + 1
        for name in self.order[keep:]:
            if name in plan.BLOCKS:
                delattr(self, name)
        if keep < len(plan.ORDER):
            del self.logits
        self.order = self.order[:keep]


class I3DTail(_Stack):
    """The blocks behind ``input_layer`` as a trainable head for cached maps, by default ``Mixed_4b`` … ``Logits``.

    Parameter names are those of the whole network, so that its checkpoint initialises the tail by name
    (``checkpoint.fill`` with ``part=True``). Batch norm follows ``.train()`` and ``.eval()``: the caller's choice.
    """

    def __init__(self, num_classes: int, input_layer: str = "mixed4a", dropout: float = 0.5) -> None:
        name = plan.ALIASES.get(input_layer, input_layer)
        if name not in plan.BLOCKS[:-1]:
            raise unknown("input layer", input_layer, plan.with_aliases(plan.BLOCKS[:-1]))
        cut = plan.BLOCKS.index(name) + 1
        super().__init__(plan.BLOCKS[cut:], plan.shape(name, 3, 32, 224)[0], num_classes, dropout)

    def forward(self, x: Tensor, layer: str | None = None) -> dict[str, Tensor]:
        """Map ``[B, 480, t, h, w]`` → ``logits`` ``[B, num_classes]`` and ``map``, the output of ``layer`` (Mixed_5c).

        Raises ``OptionError`` for an unknown layer, or for a map too short for the last average pool (t < 3).
        """
        wanted, kept = self.resolve(layer or "Mixed_5c"), x
        for name, output in self.endpoints(x):
            kept = output if name == wanted else kept
        return {"logits": output.mean(2), "map": kept}


def make(spec: InputSpec, num_classes: int | None = None) -> I3D:
    """The I3D that takes ``spec``, with 400 classes (Kinetics) unless told otherwise."""
    return I3D(num_classes or 400, spec.channels)
