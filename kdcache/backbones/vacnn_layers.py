"""Layer names and shapes of VA-CNN and of its small variant, without torch."""

from __future__ import annotations

from kdcache.backbones.resnet_layers import STAGES, known, stage_shape
from kdcache.errors import OptionError

SIDE, WIDTH = 224, 2048
ORDER = ("params", "image", *STAGES, "pool", "logits")


def resolve(layer: str) -> str:
    """A layer of VA-CNN; ``OptionError`` for an unknown one."""
    return known(layer, ORDER)


def shape(
    layer: str,
    channels: int,
    frames: int,
    size: int,
    num_classes: int = 60,
    *,
    side: int = SIDE,
    width: int = WIDTH,
) -> tuple[int, ...]:
    """Output shape of ``layer`` for ``frames`` skeleton images, one for each level of progress.

    ``channels`` is 3 and ``size`` that of skeleton images; the network sees them ``side`` pixels wide, and its
    classifier ends in ``width`` channels.
    """
    name = resolve(layer)
    if size != SIDE:
        raise OptionError(f"VA-CNN's images are {SIDE} pixels wide, not {size}: leave --size out.")
    vectors = {"params": 6, "pool": width, "logits": num_classes}
    if name in vectors:
        return (frames, vectors[name])
    return (frames, *((3, side, side) if name == "image" else stage_shape(name, side, width)))


def axes(layer: str) -> str:
    """Axes of ``layer`` in the order of ``shape``: each of the N images shows a level of progress."""
    return "ND" if resolve(layer) in ("params", "pool", "logits") else "NCHW"
