"""Layer names, shapes and axes of the Ego-RNN networks, without torch."""

from __future__ import annotations

from kdcache.backbones import resnet_layers

ORDER = ("attention", "descriptor", "logits")
CLASSES = 61  # of the published checkpoints, GTEA61


def resolve(layer: str) -> str:
    """A layer of Ego-RNN; ``OptionError`` for an unknown one."""
    return resnet_layers.known(layer, ORDER)


def shape(layer: str, channels: int, frames: int, size: int, num_classes: int = CLASSES) -> tuple[int, ...]:
    """Output shape of a layer for one clip of ``frames`` images of ``size`` × ``size``, whatever their channels."""
    name = resolve(layer)
    if name == "attention":
        side = resnet_layers.side("layer4", size)
        return (frames, side, side)
    return (resnet_layers.WIDTH,) if name == "descriptor" else (num_classes,)


def axes(layer: str) -> str:
    """Axes of a layer in the order of ``shape``: T maps of a clip, or one vector."""
    return "THW" if resolve(layer) == "attention" else "D"
