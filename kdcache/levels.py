"""Observation levels: which frames of a clip are seen at level n of N, that is at an observation ratio of n / N.

A clip of F frames is cut into N equal parts; part n holds frames ⌊(n−1)F/N⌋ … ⌊nF/N⌋ − 1 (n from 1). Where that is
empty because F < N, the last observed frame stands in; before any is observed, the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError, unknown

Mode = Literal["segment", "prefix"]
MODES: tuple[Mode, ...] = ("segment", "prefix")


@dataclass(frozen=True)
class LevelSpec:
    """``levels`` observation levels N; ``mode`` says which part of a clip each shows, see ``level_spans``."""

    levels: int = 10
    mode: Mode = "segment"

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise OptionError(f"levels is {self.levels}: a clip is cut into at least 1 part.")
        if self.mode not in MODES:
            raise unknown("progress", self.mode, MODES)

    def spans(self, frames: int) -> NDArray[np.int32]:
        """``level_spans`` of a clip of so many frames, int32 [levels, 2]."""
        return level_spans(frames, self.levels, self.mode)

    def to_recipe(self) -> dict[str, Any]:
        """As it stands in a recipe."""
        return asdict(self)

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> LevelSpec:
        """The levels that ``to_recipe`` wrote."""
        return cls(**recipe)


def level_spans(frames: int, levels: int = 10, mode: Mode = "segment") -> NDArray[np.int32]:
    """Half-open frame spans of each level: the part itself (``segment``) or all up to its end (``prefix``).

    Returns int32 [levels, 2], never empty spans, ends non-decreasing, the last one ``frames``. No span ends after
    ⌊nF/N⌋ except that the very first frame is always seen. Raises ``OptionError`` for no frames, no levels or an
    unknown mode.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if frames < 1 or levels < 1:
        raise OptionError(f"{frames} frame(s) in {levels} level(s): give at least one of each.")
    ends = np.arange(levels + 1) * frames // levels
    stop = np.maximum(ends[1:], 1)
    start = np.minimum(ends[:-1], stop - 1) if mode == "segment" else np.zeros_like(stop)
    return np.stack([start, stop], axis=1).astype(np.int32)


def level_frames(frames: int, levels: int = 10, count: int = 8, mode: Mode = "segment") -> NDArray[np.int32]:
    """``count`` frames spread evenly over each level's span, by TSM's published test rule.

    Returns int32 [levels, count]: of a span of length L, the frames ⌊L/2C + iL/C⌋; short spans repeat frames.
    """
    spans = level_spans(frames, levels, mode)
    step = (spans[:, 1] - spans[:, 0])[:, None] / count
    return (spans[:, :1] + np.floor(step / 2 + step * np.arange(count))).astype(np.int32)
