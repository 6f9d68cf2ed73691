"""Layer names and shapes of the 2-D ResNets, without torch: those of ResNet-34, and what TSM and VA-CNN share."""

from __future__ import annotations

from collections.abc import Sequence

from kdcache.errors import unknown

STAGES = ("layer1", "layer2", "layer3", "layer4")
ORDER = ("layer1", "layer2", "layer3", "layer4-pre", "layer4", "pool", "logits", "attended")
WIDTH = 512  # channels of ResNet-34's last stage; ResNet-50 and 3-D ResNeXt-101 have 2048


def known(layer: str, order: Sequence[str]) -> str:
    """``layer`` if it is in ``order``, else ``OptionError``."""
    if layer not in order:
        raise unknown("layer", layer, order)
    return layer


def resolve(layer: str) -> str:
    """A layer of ResNet-34; ``OptionError`` for an unknown one."""
    return known(layer, ORDER)


def side(stage: str, size: int) -> int:
    """Side of a stage's map for ``size`` pixels: conv1, the max pool and each later stage halve it, rounding up."""
    return -(-size // (4 << STAGES.index(stage)))


def stage_shape(stage: str, size: int, width: int) -> tuple[int, int, int]:
    """``[C, h, w]`` of a stage whose network ends in ``width`` channels; each stage has half of the next."""
    pixels = side(stage, size)
    return (width >> (3 - STAGES.index(stage)), pixels, pixels)


def shape(layer: str, channels: int, frames: int, size: int, num_classes: int = 1000) -> tuple[int, ...]:
    """Output shape of a layer of ResNet-34 for ``frames`` images of ``size`` × ``size``, whatever their channels."""
    name = resolve(layer)
    if name == "pool":
        return (frames, WIDTH)
    if name == "logits":
        return (frames, num_classes)
    return (frames, *stage_shape(name if name in STAGES else "layer4", size, WIDTH))


def axes(layer: str) -> str:
    """Axes of a layer of ResNet-34 in the order of ``shape``: T images, each a map or a vector."""
    return "TD" if resolve(layer) in ("pool", "logits") else "TCHW"
