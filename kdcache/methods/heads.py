"""Networks that are trained on cached maps: I3D's last blocks (the papers'), and a light one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.backbones.i3d import I3D, I3DTail
from kdcache.backbones.resnext3d import ResNeXt3D, ResNeXt3DTail
from kdcache.errors import OptionError, WeightsError
from kdcache.methods.contract import Outputs
from kdcache.numerics import no_autocast, stacked


class I3DHead(I3DTail):
    """I3D behind the cached layer; its output ``map`` is that of ``map_layer``."""

    def __init__(self, num_classes: int, input_layer: str, map_layer: str = "mixed5c", dropout: float = 0.5) -> None:
        super().__init__(num_classes, input_layer, dropout)
        self.map_layer = self.resolve(map_layer)

    def forward(self, x: Tensor, layer: str | None = None) -> Outputs:
        """Cached map ``[B, 480, l, h, w]`` → ``logits`` ``[B, num_classes]``, ``map``: output of ``layer``
        (``map_layer``)."""
        return super().forward(x, layer or self.map_layer)


def initialise(net: I3DTail | I3D | ResNeXt3D | ResNeXt3DTail, checkpoint: Mapping[str, Tensor]) -> None:
    """Take every parameter but the classifier's from the checkpoint of the whole network.

    Raises:
        WeightsError: it lacks some.
    """
    own = [name for name in net.state_dict() if name not in net.classifier]
    missing = [name for name in own if name not in checkpoint]
    if missing:
        which = "an I3D's" if isinstance(net, (I3D, I3DTail)) else "a 3-D ResNeXt-101's"
        raise WeightsError(f"The checkpoint is not {which}: it lacks {missing[0]} and {len(missing) - 1} others.")
    net.load_state_dict({name: checkpoint[name] for name in own}, strict=False)


def _cells_of_stack(maps: Tensor) -> Tensor:
    """``cells`` of several maps, ``[n, channels, l, h, w]``: it looks at each channel by itself."""
    found = cells(maps.flatten(0, 1))
    return found.view(*maps.shape[:2], *found.shape[1:])


@stacked(_cells_of_stack)
def cells(x: Tensor) -> Tensor:
    """Averages over cells of 2×2×2 positions: ``[channels, l, h, w]``, any floats → float32 ``[channels, ⌈l/2⌉, ⌈h/2⌉,
    ⌈w/2⌉]``.

    A map of ``mixed4a`` then has the resolution of I3D's last blocks. Cells at an odd end average what is there.
    """
    if x.ndim != 4:
        raise OptionError(
            f"The light head reads maps (channels, time, height, width); this stream has {list(x.shape)}."
        )
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.float32) and not x.requires_grad:
        from kdcache.methods.cells_kernel import average_cells  # brings numba, which other heads do without

        out = torch.empty([x.shape[0], *(-(-size // 2) for size in x.shape[1:])])
        average_cells(x.contiguous(), out)
        return out
    x = x.float()
    for dim in (1, 2, 3):
        first, second = x[(slice(None),) * dim + (slice(0, None, 2),)], x[(slice(None),) * dim + (slice(1, None, 2),)]
        pairs = second.shape[dim]
        halved = (first.narrow(dim, 0, pairs) + second) / 2
        x = torch.cat([halved, first.narrow(dim, pairs, 1)], dim) if first.shape[dim] > pairs else halved
    return x


class LightHead(nn.Module):
    """A head that trains in minutes without a GPU: projection, attention pooling, linear classifier.

    It reads the averages of ``cells``, which keep n, and with it the n × n attention of L_d, small. They are projected
    to ``width`` channels by a 1×1×1 convolution with batch norm and ReLU, pooled over positions with learned softmax
    weights, and classified.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.project = nn.Conv3d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.attend = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(width, num_classes)
        nn.init.zeros_(self.attend.weight)  # starts as average pooling
        nn.init.zeros_(self.attend.bias)

    def forward(self, x: Tensor) -> Outputs:
        """``[B, channels, l, h, w]`` → ``logits`` ``[B, num_classes]``, ``map`` ``[B, width, l, h, w]``, ``weights`` of
        its positions ``[B, l, h, w]`` and ``pooled`` ``[B, width]``."""
        feature_map = F.relu(self.norm(self.project(x)))
        positions = feature_map.flatten(2).transpose(1, 2)
        weights = torch.softmax(self.attend(positions).float(), dim=1)
        with no_autocast(x):
            pooled = (weights.transpose(1, 2) @ positions.float()).squeeze(1)
        logits = self.classify(self.dropout(pooled))
        where = weights.squeeze(2).view(len(x), *x.shape[2:])
        return {"logits": logits, "map": feature_map, "weights": where, "pooled": pooled}
