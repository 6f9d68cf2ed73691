"""Layer names and shapes of the 3-D ResNeXt-101, without torch."""

from __future__ import annotations

from kdcache.backbones.resnet_layers import STAGES, known, stage_shape

WIDTH = 2048
ORDER = (*STAGES, "pool", "logits")


def resolve(layer: str) -> str:
    """A layer of ResNeXt-101; ``OptionError`` for an unknown one."""
    return known(layer, ORDER)


def shape(layer: str, channels: int, frames: int, size: int, num_classes: int = 400) -> tuple[int, ...]:
    """Output shape of ``layer`` for one clip of ``frames`` × ``size`` × ``size``, whatever its channels."""
    name = resolve(layer)
    if name not in STAGES:
        return (WIDTH if name == "pool" else num_classes,)
    width, height, _ = stage_shape(name, size, WIDTH)
    return (width, -(-frames // (2 << STAGES.index(name))), height, height)


def axes(layer: str) -> str:
    """Axes of ``layer`` in the order of ``shape``."""
    return "CTHW" if resolve(layer) in STAGES else "D"
