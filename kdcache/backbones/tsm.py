"""TSM ResNet-50: a 2-D network that shifts a quarter of its channels along time inside every residual branch.

Source: Lin, Gan & Han, "TSM: Temporal shift module for efficient video understanding", ICCV 2019, and its code
(mit-han-lab/temporal-shift-module): 8 segments, an eighth of the channels each way, placement ``blockres``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet50

from kdcache.backbones import tsm_layers as plan
from kdcache.backbones.framewise import Framewise, trunk
from kdcache.backbones.resnet_layers import STAGES
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.levels import Mode, level_frames

SHARE = 8  # one channel in so many moves, each way


def shift(x: Tensor, segments: int, online: bool = False) -> Tensor:
    """Move an eighth of the channels a step back in time and an eighth a step forward.

    Args:
        x: float [N × segments, C, H, W], the segments of each clip in a row.
        segments: frames of a clip; nothing crosses from one clip to the next.
        online: the published uni-directional shift: only the first eighth moves, and it comes from the past.

    Returns:
        Same shape. Offline, of segment t, channels [0, C/8) are those of t + 1 and [C/8, C/4) those of t − 1; online,
        channels [0, C/8) are those of t − 1. Beyond a clip's ends stand zeros.
    """
    clips = x.view(-1, segments, *x.shape[1:])
    fold = x.shape[1] // SHARE
    out = torch.empty_like(clips)
    past = slice(0, fold) if online else slice(fold, 2 * fold)
    out[:, :, past.stop :] = clips[:, :, past.stop :]
    out[:, 1:, past] = clips[:, :-1, past]
    out[:, 0, past] = 0
    if not online:
        out[:, :-1, :fold] = clips[:, 1:, :fold]
        out[:, -1, :fold] = 0
    return out.flatten(0, 1)


class ShiftedConv2d(nn.Conv2d):
    """A convolution behind a temporal shift.

    Published checkpoints wrap the convolution, so its weight is called ``net.weight`` there; here it is one module,
    into which batch norm can be folded, and only the name in state dicts is the published one.
    """

    segments: int
    online: bool

    def forward(self, x: Tensor) -> Tensor:
        """``[N × segments, C, H, W]`` → ``[N × segments, C', H', W']``."""
        return super().forward(shift(x, self.segments, self.online))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, f"{prefix}net.", keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, f"{prefix}net.", *rest)


class TSM(Framewise):
    """TSM ResNet-50 on ``float [B, T, 3, H, W]``, T a multiple of ``segments``: each 8 frames in a row are one clip.

    Published checkpoints load unchanged. ``prepare`` is ImageNet's normalisation.

    Layers: ``layer1`` … ``layer4`` [T, C, h, w], ``pool`` [T, 2048] (each segment, before dropout and classifier),
    ``clip`` [T / 8, 2048] (the mean over a clip's segments), ``logits`` [T / 8, classes] (mean over segments of the
    segments' scores, as published).

    The shift is offline: a segment's feature sees the next segment of its clip, and through 16 blocks all of them. For
    early recognition see ``level_features``. With ``online=True`` it sees past segments only; that is for weights
    trained so, with any number of ``segments``.
    """

    classifier = ("new_fc.weight", "new_fc.bias")
    order = plan.ORDER
    owners = {  # noqa: RUF012
        **{name: f"base_model.{name}" for name in STAGES[1:]},
        "logits": "new_fc",
    }

    def __init__(self, num_classes: int = 400, segments: int = plan.SEGMENTS, online: bool = False) -> None:
        super().__init__()
        self.base_model = resnet50(weights=None)
        del self.base_model.fc
        for stage in STAGES:
            for block in self.base_model.get_submodule(stage).children():
                block.conv1 = _shifted(block.conv1, segments, online)
        self.new_fc = nn.Linear(plan.WIDTH, num_classes)
        self.segments, self.online, self.num_classes = segments, online, num_classes
        self.input = InputSpec("rgb", frames=segments, default_layer="clip")

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer → its shape for one clip at 224 pixels."""
        n, size = self.segments, self.input.size
        return {name: plan.shape(name, 3, n, size, self.num_classes, n) for name in self.order}

    def check(self, x: Tensor) -> None:
        """``OptionError`` for a batch that is not ``float [B, T, 3, H, W]`` with T a multiple of the segments."""
        super().check(x)
        plan.clips(x.shape[1], self.segments)

    def endpoints(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and output for frames ``[N, 3, H, W]`` in turn, computed only when asked for."""
        pooled = images
        for name, pooled in trunk(self.base_model, images):
            yield name, pooled
        clip = pooled.view(-1, self.segments, plan.WIDTH).mean(1)
        yield "clip", clip
        yield "logits", self.new_fc(clip)  # linear, so the scores of the mean are the mean of the scores


def level_features(net: TSM, frames: NDArray[np.uint8], levels: int = 10, mode: Mode = "segment") -> Tensor:
    """Causal features of a video at ``levels`` observation ratios: level n sees nothing of what follows it.

    Args:
        net: the network, offline or online.
        frames: uint8 [F, H, W, 3], the whole clip, resized and cropped.
        levels: N, the number of equal parts in which the clip is cut.
        mode: ``segment`` samples a clip of 8 frames inside part n [reconstructed: the early-recognition paper says
            only "feature of segment n"]; ``prefix`` inside everything up to the end of part n.

    Returns:
        float32 [levels, 2048], the layer ``clip`` of each level.
    """
    wanted = level_frames(len(frames), levels, net.segments, mode)
    with torch.inference_mode():
        clips = net.prepare(torch.from_numpy(frames[wanted]))
        return torch.cat([net.features(clip[None], "clip")[0] for clip in clips])


def _shifted(conv: nn.Conv2d, segments: int, online: bool) -> ShiftedConv2d:
    new = ShiftedConv2d(conv.in_channels, conv.out_channels, 1, bias=False)
    new.segments, new.online = segments, online
    return new


def make(spec: InputSpec, num_classes: int | None = None, online: bool = False) -> TSM:
    """The network with the published (offline) or the online shift, for Kinetics' 400 classes unless told otherwise."""
    return TSM(num_classes or 400, spec.frames, online)
