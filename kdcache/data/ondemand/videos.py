"""Video clips as training inputs: the centre crop of a segment, and crops, scales, mirrors and moments around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.ondemand.clips import Clip, Loaded, read_each
from kdcache.data.ondemand.stream import OnDemand
from kdcache.methods.contract import Segment
from kdcache.sampling import Sampling, sample
from kdcache.sources import Source, open_source
from kdcache.views import CENTRE, MOMENTS, Augmentation, Views, cut, resize_short_side


@dataclass(frozen=True)
class DecodedClip:
    """What is known of one clip: which frames may be shown, and their pixels where there was room."""

    clip: Clip
    indices: NDArray[np.int32]
    """[3, T]: for each of ``MOMENTS`` the source's frames."""
    frames: NDArray[np.uint8] | None
    """[n, H, W, 3], those of ``np.unique(indices)``; None: decode them again."""

    @property
    def nbytes(self) -> int:
        """Memory that its pixels fill."""
        return 0 if self.frames is None else self.frames.nbytes


@dataclass(frozen=True)
class VideoInput:
    """What a backbone is shown."""

    frames: int
    fps: float | None
    views: Views
    decoder: str

    def indices(self, source: Source, clip: Clip) -> NDArray[np.int32]:
        """[3, T]: the frames of a clip at the first, centre and last moment of each part."""
        rules = [Sampling(self.frames, self.fps, moment) for moment in MOMENTS]
        return np.stack([sample(source.times, clip.start_s, clip.stop_s, rule) for rule in rules])

    def open(self, clip: Clip) -> Source:
        """The source of a clip, as extraction opens it."""
        return open_source(clip.path, self.decoder, clip.fps)

    def read(self, source: Source, wanted: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Frames [n, H, W, 3] whose short side fits the views; ``wanted`` ascends without repeats."""
        return np.stack([resize_short_side(frame, self.views.short_side) for frame in source.read(wanted)])

    def decode(self, clip: Clip) -> DecodedClip:
        """One clip with its frames."""
        with self.open(clip) as source:
            return self.decoded(source, clip)

    def decoded(self, source: Source, clip: Clip) -> DecodedClip:
        """One clip of an opened source with its frames."""
        indices = self.indices(source, clip)
        return DecodedClip(clip, indices, self.read(source, np.unique(indices)))


def load(clips: Sequence[Clip], shown: VideoInput, budget: float) -> Loaded[DecodedClip]:
    """Decode every clip once, keeping its frames while they fit into ``budget`` bytes together."""
    left = budget

    def read(source: Source, clip: Clip) -> DecodedClip:
        nonlocal left
        decoded = shown.decoded(source, clip)
        if decoded.nbytes > left:
            return DecodedClip(clip, decoded.indices, None)
        left -= decoded.nbytes
        return decoded

    return read_each(clips, shown.open, read)


class VideoClips(OnDemand):
    """Segments ``uint8 [T, size, size, 3]``, as extracted the centre crop; augmentations show other moments of the
    clip's T parts, from another corner, at another scale, and mirrored or not.
    """

    def __init__(
        self,
        clips: Mapping[int, DecodedClip],
        shown: VideoInput,
        segment: Segment,
        seed: int,
        device: torch.device,
        available: Tensor | None = None,
    ) -> None:
        shape = (shown.frames, shown.views.size, shown.views.size, 3)
        super().__init__(shape, 1 + segment.augmentations, seed, device, available)
        self.clips, self.shown, self.mirror = clips, shown, segment.mirror

    def view(self, row: int, view: int, key: int) -> NDArray[np.uint8]:
        """One segment."""
        clip, name = self.clips[row], "centre"
        chosen = clip.indices[CENTRE]
        if view:
            parts = len(chosen) if self.shown.fps is None else 1  # at a fixed rate the segment moves as a whole
            drawn = Augmentation.draw(self.random(key, view), parts, self.mirror)
            chosen, name = clip.indices[drawn.moments, np.arange(len(chosen))], drawn.crop
        views = Views(self.shown.views.size, self.shown.views.resize, (name,))
        return np.asarray(cut(self._frames(clip, chosen), views)[0], np.uint8)

    def _frames(self, clip: DecodedClip, chosen: NDArray[np.int32]) -> NDArray[np.uint8]:
        if clip.frames is not None:
            return clip.frames[np.searchsorted(np.unique(clip.indices), chosen)]
        wanted, places = np.unique(chosen, return_inverse=True)
        with self.shown.open(clip.clip) as source:
            return self.shown.read(source, wanted)[places]
