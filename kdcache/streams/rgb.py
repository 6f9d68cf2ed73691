"""``rgb``: the frames of a clip, as JPEG or as they are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.recipe import Recipe
from kdcache.streams.base import Array, Choose, Payload, Strip, thumbnails
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import ClipFrames, DenseStream

_JPEG_SHARE = 0.12  # JPEG bytes per raw byte at quality 95


@dataclass(frozen=True, kw_only=True)
class RgbStream(DenseStream):
    """Frames [T, H, W, 3], uint8."""

    quality: int | None
    """Of JPEG; ``None``: kept as they are."""

    names: ClassVar[tuple[str, ...]] = ("rgb",)
    channels: ClassVar[float] = 3

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        """See ``Stream``."""
        return cls(name=name, quality=settings.quality if settings.rgb == "jpeg" else None, **cls.common(settings))

    @classmethod
    def from_recipe(cls, name: str, recipe: Recipe, choose: Choose) -> Self:
        """See ``Stream``."""
        return cls(name=name, quality=recipe.get("quality"), **cls.common_in(recipe))

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """See ``Stream``."""
        return "THWC"

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Array, frames: NDArray[np.int32]) -> list[Strip]:
        """The frames, and the trajectories that end at each of them or later, which are computed here."""
        strips = [Strip("frames", array, frames, order=0)]
        if len(array) > 1:
            strips.append(Strip("trajectories", _tracks(array), frames, order=2))
        return strips

    def to_recipe(self) -> Recipe:
        """See ``Stream``."""
        if self.quality is None:
            return super().to_recipe()
        return {**super().to_recipe(), "layout": "jpeg", "quality": self.quality}

    @functools.cached_property
    def pixel_bytes(self) -> float:
        """Less for JPEG."""
        return super().pixel_bytes * (1 if self.quality is None else _JPEG_SHARE)

    def compute(self, clip: ClipFrames) -> Payload:
        """JPEG files one a frame, or uint8 [T, H, W, 3]."""
        frames = clip.stack(self)
        if self.quality is None:
            return frames
        setting = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        return [cv2.imencode(".jpg", cv2.cvtColor(f, cv2.COLOR_RGB2BGR), setting)[1].tobytes() for f in frames]


def _tracks(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Trajectories drawn over the frames that become thumbnails; the others stay black."""
    from kdcache.motion import trajectories
    from kdcache.motion.idt import draw_trajectories

    table = trajectories(rgb)
    out = np.zeros_like(rgb)
    for t in thumbnails(len(rgb)):
        out[t] = draw_trajectories(rgb[t], table, int(t))
    return out
