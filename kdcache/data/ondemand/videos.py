"""Video clips as training inputs: the centre crop of a segment, and crops, scales, mirrors and moments around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.data.ondemand.clips import Clip, Loaded, read_each
from kdcache.data.ondemand.stream import OnDemand
from kdcache.methods.fit_options import Options
from kdcache.sampling import Sampling, sample
from kdcache.sources import Source, open_source
from kdcache.views import Views, cut, resize_short_side

MOMENTS: tuple[Literal["first", "centre", "last"], ...] = ("first", "centre", "last")
CENTRE = MOMENTS.index("centre")
PLACES = ("centre", "tl", "tr", "bl", "br")
SCALES = ("1", "0.875", "0.75", "0.66")  # of the short side [TSN's code, which TSM's uses]


@dataclass(frozen=True)
class Shot:
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
class Input:
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


def load(clips: Sequence[Clip], shown: Input, budget: float) -> Loaded[Shot]:
    """Decode every clip once, keeping its frames while they fit into ``budget`` bytes together."""
    left = budget

    def read(source: Source, clip: Clip) -> Shot:
        nonlocal left
        indices = shown.indices(source, clip)
        shot = Shot(clip, indices, shown.read(source, np.unique(indices)))
        if shot.nbytes > left:
            return Shot(clip, indices, None)
        left -= shot.nbytes
        return shot

    return read_each(clips, shown.open, read)


class VideoClips(OnDemand):
    """Segments ``uint8 [T, size, size, 3]``, as extracted the centre crop; augmentations show other moments of the
    clip's T parts, from another corner, at another scale, and mirrored or not.
    """

    def __init__(
        self, clips: Mapping[int, Shot], shown: Input, options: Options, seed: int, device: torch.device
    ) -> None:
        super().__init__((shown.frames, shown.views.size, shown.views.size, 3), options, seed, device)
        self.clips, self.shown = clips, shown

    def view(self, row: int, view: int) -> NDArray[np.uint8]:
        """One segment."""
        shot, name = self.clips[row], "centre"
        chosen = shot.indices[CENTRE]
        if view:
            rng = self.random(row, view)
            parts = chosen.shape if self.shown.fps is None else 1  # at a fixed rate the segment moves as a whole
            chosen = shot.indices[rng.integers(len(MOMENTS), size=parts), np.arange(len(chosen))]
            name = f"{rng.choice(PLACES)}@{rng.choice(SCALES)}"
            name += "-flip" if self.options.mirror and rng.random() < 0.5 else ""
        views = Views(self.shown.views.size, self.shown.views.resize, (name,))
        return np.asarray(cut(self._frames(shot, chosen), views)[0], np.uint8)

    def _frames(self, shot: Shot, chosen: NDArray[np.int32]) -> NDArray[np.uint8]:
        if shot.frames is not None:
            return shot.frames[np.searchsorted(np.unique(shot.indices), chosen)]
        wanted, places = np.unique(chosen, return_inverse=True)
        with self.shown.open(shot.clip) as source:
            return self.shown.read(source, wanted)[places]
