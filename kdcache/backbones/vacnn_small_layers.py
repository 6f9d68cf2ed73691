"""Layer names and shapes of the small VA-CNN, without torch."""

from __future__ import annotations

from kdcache.backbones import vacnn_layers
from kdcache.backbones.vacnn_layers import ORDER, axes, resolve

__all__ = ["ORDER", "SIDE", "WIDTH", "axes", "resolve", "shape"]

SIDE, WIDTH = 96, 512


def shape(layer: str, channels: int, frames: int, size: int, num_classes: int = 60) -> tuple[int, ...]:
    """Output shape of ``layer`` for ``frames`` skeleton images, one for each level of progress; ``channels`` is 3."""
    return vacnn_layers.shape(layer, channels, frames, size, num_classes, side=SIDE, width=WIDTH)
