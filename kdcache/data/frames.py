"""Whole-clip streams (``rgb``, ``flow``, ``idt``) as training inputs: decoded in the loader, cut alike in every
input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.data.beside import stored_at
from kdcache.data.ondemand.stream import OnDemand
from kdcache.data.stream import Reader
from kdcache.errors import OptionError
from kdcache.methods.contract import Segment
from kdcache.motion.flow_image import ZERO, dequantise, quantise
from kdcache.sampling import Sampling, within
from kdcache.views import CENTRE, MOMENTS, Augmentation, Views, cut, resize_short_side


class CachedFrames(OnDemand):
    """A whole-clip stream of a cache as segments of T frames.

    ``rgb`` gives uint8 ``[T, S, S, 3]``; ``flow`` uint8 ``[T, S, S, 2 stack]`` (x and y of each field in turn; the
    bytes of ``kdcache.motion.flow_image``); ``idt`` uint8 ``[T, S, S]``. View 0 is the centre crop at the middle of
    each of T parts of the clip; with ``names`` the views are these crops, of the
    frames of ``follows`` where that is given; else further views are augmentations that
    depend on the seed and the example alone, and so are the same in every input.

    Args:
        cache: where clips are read.
        name: of the stream.
        clip_ids: of all rows.
        segment: what is shown of a clip.
        seed: of the augmentation.
        device: on which batches are wanted.
        available: which rows are cached.
        names: views to cut, where features beside these frames have views of their own.
        order: permutation of ``THWC`` (motion maps ``THW``) that gives the input's axes; none: as they are.
        follows: stream of features at whose source frames the clip is shown, with ``names``.
    """

    def __init__(
        self,
        cache: Reader,
        name: str,
        clip_ids: Sequence[str],
        segment: Segment,
        seed: int,
        device: torch.device,
        available: torch.Tensor | None = None,
        names: Sequence[str] | None = None,
        order: Sequence[int] | None = None,
        *,
        follows: str | None = None,
    ) -> None:
        recipe = cache.recipe(name)
        self.flow, self.bound = "flow" in recipe, float(recipe.get("bound", 20.0))
        self.channels = 0 if "idt" in recipe else 2 * segment.stack if self.flow else 3
        if segment.fps is not None:
            raise OptionError(
                f"fps={segment.fps}: cached frames keep the rate at which {name} was extracted; drop fps."
            )
        if segment.stack > 1 and not self.flow:
            raise OptionError(f"stack={segment.stack}: only flow fields are stacked, and {name} is not flow.")
        views = 1 + segment.augmentations if names is None else len(names)
        stored = (segment.frames, segment.size, segment.size, *([self.channels] if self.channels else []))
        self.order = tuple(range(len(stored))) if order is None else tuple(order)
        shape = tuple(stored[axis] for axis in self.order)
        super().__init__(shape, views, seed, device, available)
        self.cache, self.name, self.clip_ids, self.segment = cache, name, list(clip_ids), segment
        self.names, self.follows = None if names is None else list(names), follows
        self.views_of = Views(segment.size, segment.resize)

    def view(self, row: int, view: int, key: int) -> NDArray[Any]:
        """One segment, in the order of the input's axes."""
        return np.ascontiguousarray(self._segment(row, view, key).transpose(self.order))

    def shown(self, row: int) -> NDArray[np.integer[Any]]:
        """Which frames of a clip view 0 shows, by number from 0: int [T]; of flow those from which fields lead."""
        clip = self.clip_ids[row]
        return self._chosen(clip, self._frames_of(clip), np.full(self.segment.frames, CENTRE))

    def _frames_of(self, clip: str) -> int:
        """How many frames a clip has."""
        return self.cache.length(self.name, clip) + self.flow  # a clip of n frames has n − 1 fields

    def _chosen(self, clip: str, length: int, moments: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
        """Which of the frames of a clip are shown: those of ``follows``, or those at the given moment of each part."""
        if self.follows is not None:
            return stored_at(self.cache, self.follows, self.name, clip)
        rules = [Sampling(self.segment.frames, anchor=moment) for moment in MOMENTS]
        indices = np.stack(
            [within(np.arange(length, dtype=np.float64), 0, length, math.nan, math.nan, r) for r in rules]
        )
        return np.asarray(indices[moments, np.arange(self.segment.frames)])

    def _segment(self, row: int, view: int, key: int) -> NDArray[Any]:
        clip, T = self.clip_ids[row], self.segment.frames
        name, moments = "centre" if self.names is None else self.names[view], np.full(T, CENTRE)
        if self.names is None and view:
            name = Augmentation.draw(self.random(key, view), 1, self.segment.mirror).crop  # whatever the input's T
            moments = np.random.default_rng([self.seed, key, view, T]).integers(len(MOMENTS), size=T)
        length = self._frames_of(clip)
        if self.flow and length == 1:  # one frame has no field, and does not move
            return np.full((T, self.views_of.size, self.views_of.size, self.channels), ZERO, np.uint8)
        chosen = self._chosen(clip, length, moments)
        if self.flow:  # the fields around each frame, clamped at the clip's ends
            offsets = np.arange(self.segment.stack) - self.segment.stack // 2
            chosen = np.clip(chosen[:, None] + offsets, 0, length - 2).reshape(-1)
        wanted, places = np.unique(chosen, return_inverse=True)
        frames = self.cache.read_frames(self.name, clip, wanted)
        views = Views(self.views_of.size, self.views_of.resize, (name,))
        if self.flow:
            return self._flow(frames[places], views)
        if not self.channels:
            frames = frames[..., None]
        shown = np.stack([resize_short_side(frame, views.short_side) for frame in frames])
        segment = cut(shown[places], views)[0]
        return np.asarray(segment if self.channels else segment[..., 0])

    def _flow(self, fields: NDArray[Any], views: Views) -> NDArray[np.uint8]:
        """Fields ``[T stack, H, W, 2]`` as stored → bytes ``[T, S, S, 2 stack]``; vectors grow with the picture."""
        pixels = dequantise(fields, self.bound) if fields.dtype == np.uint8 else fields.astype(np.float32)
        scale = np.float32(views.short_side / min(pixels.shape[1:3]))
        if scale != 1:
            pixels = np.stack([resize_short_side(field, views.short_side) for field in pixels]) * scale
        stored = quantise(cut(pixels, views, flow=True)[0], self.bound)
        T, k = self.segment.frames, self.segment.stack
        return stored.reshape(T, k, *stored.shape[1:]).transpose(0, 2, 3, 1, 4).reshape(T, *stored.shape[1:3], 2 * k)
