"""Skeleton clips as training inputs: the image of the whole clip, and of turned and partly observed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.ondemand.clips import Clip, Loaded, read_each
from kdcache.data.ondemand.stream import OnDemand
from kdcache.levels import level_spans
from kdcache.methods.contract import SkeletonSegment
from kdcache.skeletons import JointLayout, Skeleton, open_skeleton
from kdcache.skeletons.image import SIDE, image_of, level_image, random_angles


def load(clips: Sequence[Clip], layout: JointLayout | None) -> Loaded[Skeleton]:
    """Read the joints of clips; ``layout`` is that of arrays, see ``open_skeleton``."""
    return read_each(
        clips, lambda clip: open_skeleton(clip.path, layout), lambda s, clip: s.span(clip.start_s, clip.stop_s)
    )


class SkeletonClips(OnDemand):
    """Skeleton images ``[1, 224, 224, 3]``; augmentations turn the clip and, unless told not to, cut it short."""

    def __init__(
        self,
        clips: Mapping[int, Skeleton],
        limits: tuple[float, float],
        segment: SkeletonSegment,
        seed: int,
        device: torch.device,
        available: Tensor | None = None,
    ) -> None:
        super().__init__((1, SIDE, SIDE, 3), 1 + segment.augmentations, seed, device, available)
        self.clips, self.limits, self.segment = clips, limits, segment

    def view(self, row: int, view: int, key: int) -> NDArray[Any]:
        """One image, uint8 (``scipy_bytescale``) or float32."""
        clip, shown = self.clips[row], self.segment
        if view == 0:
            return image_of(clip, self.limits, shown.resize)[None]
        rng = self.random(key, view)
        angles = random_angles(rng, planar=clip.planar)
        start, stop = 0, clip.total
        if shown.observed == "random":
            start, stop = level_spans(clip.total, shown.levels, shown.progress)[rng.integers(shown.levels)]
        return level_image(clip, int(start), int(stop), self.limits, shown.resize, angles)[None]
