"""``idt``: motion maps of improved dense trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe import Recipe
from kdcache.sources import Source
from kdcache.streams.base import Array, Choose, ClipSpan, Payload, Strip
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import ClipFrames, DenseStream


@dataclass(frozen=True, kw_only=True)
class IdtStream(DenseStream):
    """Motion maps [T, H, W], uint8: 255 where a trajectory passes, else 0."""

    names: ClassVar[tuple[str, ...]] = ("idt",)
    channels: ClassVar[float] = 1

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        """See ``Stream``."""
        return cls(name=name, **cls.common(settings))

    @classmethod
    def from_recipe(cls, name: str, recipe: Recipe, choose: Choose) -> Self:
        """See ``Stream``."""
        return cls(name=name, **cls.common_in(recipe))

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """See ``Stream``."""
        return "THW"

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Array, frames: NDArray[np.int32]) -> list[Strip]:
        """The maps in grey."""
        return [Strip("motion map", np.repeat(array[..., None], 3, axis=-1), frames, order=3)]

    def to_recipe(self) -> Recipe:
        """See ``Stream``."""
        from kdcache.motion.idt import IDTParams

        return {**super().to_recipe(), "idt": {"algorithm": "idt", **asdict(IDTParams())}}

    def compute(self, clip: ClipFrames) -> Payload:
        """uint8 [T, H, W]."""
        from kdcache.motion import motion_maps

        return motion_maps(clip.stack(self))

    def compute_some(
        self, source: Source, span: ClipSpan, numbers: NDArray[np.integer[Any]], threads: int, device: str = "cpu"
    ) -> Payload:
        """See ``DenseStream``; trajectories need the whole clip."""
        maps: Array = np.asarray(self.compute(self.read_clip(source, span, threads)))[numbers]
        return maps
