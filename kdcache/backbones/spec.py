"""What a backbone takes and gives, in words that need no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

Weights = str | os.PathLike[str] | None
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputSpec:
    """What a backbone takes: ``frames`` × ``size`` × ``size`` crops of video whose short side is ``resize``.

    ``stack`` consecutive flow fields make up one of the ``frames`` of a flow network.
    """

    modality: Literal["rgb", "flow", "rgb+flow", "skeleton"]
    frames: int = 32
    size: int = 224
    resize: int = 256
    default_layer: str = "pool"
    stack: int = 1

    @property
    def channels(self) -> int:
        """Channels of the ``uint8 [B, T, H, W, C]`` batches: 3 for RGB and skeletons, x and y of each flow field."""
        return 2 * self.stack if self.modality == "flow" else 3
