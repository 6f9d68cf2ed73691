"""Layer names and shapes of TSM ResNet-50, without torch."""

from __future__ import annotations

from kdcache.backbones.resnet_layers import STAGES, known, stage_shape
from kdcache.errors import OptionError

SEGMENTS, WIDTH = 8, 2048
ORDER = (*STAGES, "pool", "clip", "logits")


def resolve(layer: str) -> str:
    """A layer of TSM; ``OptionError`` for an unknown one."""
    return known(layer, ORDER)


def clips(frames: int, segments: int = SEGMENTS) -> int:
    """How many clips of ``segments`` frames make up ``frames``; ``OptionError`` when they do not come out even."""
    if frames < 1 or frames % segments:
        raise OptionError(
            f"TSM takes clips of {segments} frames and got {frames}: sample a multiple of {segments} "
            f"({segments} for a clip, {10 * segments} for 10 progress levels)."
        )
    return frames // segments


def shape(
    layer: str, channels: int, frames: int, size: int, num_classes: int = 400, segments: int = SEGMENTS
) -> tuple[int, ...]:
    """Output shape of ``layer`` for ``frames`` images of ``size`` × ``size``; ``channels`` is always 3."""
    name = resolve(layer)
    count = clips(frames, segments)
    if name in STAGES:
        return (frames, *stage_shape(name, size, WIDTH))
    return (frames, WIDTH) if name == "pool" else (count, WIDTH if name == "clip" else num_classes)


def axes(layer: str) -> str:
    """Axes of ``layer`` in the order of ``shape``: T counts frames, for ``clip`` and ``logits`` clips of 8 frames."""
    return "TCHW" if resolve(layer) in STAGES else "TD"
