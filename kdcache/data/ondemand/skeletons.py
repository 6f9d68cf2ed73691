"""Skeleton clips as training inputs: the image of the whole clip, and of turned and partly observed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.data.ondemand.clips import Clip, Loaded, read_each
from kdcache.data.ondemand.stream import OnDemand
from kdcache.levels import progress_spans
from kdcache.methods.fit_options import Options
from kdcache.skeletons.base import Skeleton, open_skeleton
from kdcache.skeletons.image import SIDE, centred, image_of, rotated, skeleton_image

TURN = 0.3  # radians, the largest angle of the training augmentation [VA-CNN's code]


def load(clips: Sequence[Clip]) -> Loaded[Skeleton]:
    """Read the joints of clips."""
    return read_each(clips, lambda clip: open_skeleton(clip.path), lambda s, clip: s.span(clip.start_s, clip.stop_s))


class SkeletonClips(OnDemand):
    """Skeleton images ``[1, 224, 224, 3]``; augmentations turn the clip and, unless told not to, cut it short."""

    def __init__(
        self,
        clips: Mapping[int, Skeleton],
        limits: tuple[float, float],
        options: Options,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__((1, SIDE, SIDE, 3), options, seed, device)
        self.clips, self.limits = clips, limits

    def view(self, row: int, view: int) -> NDArray[Any]:
        """One image, uint8 (``scipy_bytescale``) or float32."""
        clip, options = self.clips[row], self.options
        if view == 0:
            return image_of(clip, self.limits, options.skeleton)[None]
        rng = self.random(row, view)
        angles = rng.uniform(-TURN, TURN, 3).astype(np.float32)
        if not clip.joints[..., 2].any():  # flat joints stay in their plane
            angles[:2] = 0
        start, stop = 0, clip.total
        if options.observed == "random":
            start, stop = progress_spans(clip.total, options.levels, options.progress)[rng.integers(options.levels)]
        known = clip.observed(int(stop))
        joints = centred(known.joints, known.per_body, known.centre)[known.frames >= start]
        return skeleton_image(rotated(joints, angles), known.per_body, self.limits, options.skeleton)[None]
