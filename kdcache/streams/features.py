"""Features of videos: views of segments of frames or of flow, through a frozen network."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdcache import backbones
from kdcache.backbones.custom import external
from kdcache.levels import LevelSpec
from kdcache.motion.flow_image import quantise
from kdcache.motion.stacks import stacked
from kdcache.recipe import Recipe
from kdcache.sampling import Sampling, clip_range
from kdcache.sources import open_source
from kdcache.streams.backbone import BackboneStream, layer_axes, split_name
from kdcache.streams.base import Array, Choose, ClipSpan, level_shape
from kdcache.streams.flow import flow_recipe
from kdcache.streams.flow_memory import AUTO
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import ClipFrames, ClipRequest, FrameRequest, Part, VideoStream, flow_pairs, read_requests
from kdcache.views import Views, cut


@dataclass(frozen=True, kw_only=True)
class FeatureStream(VideoStream, BackboneStream):
    """Features of segments of a clip in several views, of the whole clip or of each of its levels."""

    views: Views
    levels: LevelSpec | None
    """Each level is a segment of its own."""
    bound: float | None
    """Of flow networks: flow beyond this many pixels is clipped; ``None`` for networks that take RGB."""
    stack: int = 1
    """Flow fields that make up one frame of a segment."""
    axes: str | None = None
    """Of the layer, where the network is from elsewhere."""

    @classmethod
    def _feeds(cls, spec: backbones.InputSpec) -> bool:
        return spec.modality in ("rgb", "flow")

    @classmethod
    def owns(cls, recipe: Mapping[str, Any]) -> bool:
        """Whether a recipe is of this kind; those of networks from elsewhere say so, whether or not one is here."""
        return "library" in recipe.get("backbone", {}) or super().owns(recipe)

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        """See ``Stream``."""
        backbone, layer, spec = split_name(name)
        size = settings.size or spec.size
        resize = settings.resize or (spec.resize if size == spec.size else None)
        views = Views(size=size, resize=resize, names=settings.views)
        sampling = Sampling(frames=settings.frames or spec.frames, fps=settings.fps, anchor=settings.anchor)
        backbones.layer_shape(
            backbone, layer, sampling.frames, size, classes=1
        )  # refuses before weights are looked for
        axes = backbones.layer_axes(backbone, layer, settings.axes, sampling.frames, size)
        return cls(
            name=name,
            backbone=backbone,
            layer=layer,
            weights=choose(backbone),
            precision=settings.precision,
            dtype=settings.dtype,
            sampling=sampling,
            short_side=views.short_side,
            decoder=settings.decoder,
            flow_engine=settings.flow_engine if spec.modality == "flow" else None,
            views=views,
            levels=None if settings.levels is None else LevelSpec(settings.levels, settings.progress or "segment"),
            bound=settings.bound if spec.modality == "flow" else None,
            stack=spec.stack,
            axes=axes if backbones.is_external(backbone) else None,
        )

    @classmethod
    def from_recipe(cls, name: str, recipe: Recipe, choose: Choose) -> Self:
        """See ``Stream``."""
        views = Views.from_recipe(recipe["views"])
        common = cls._common_in(recipe, name)
        return cls(
            **common,
            weights=choose(common["backbone"]),
            sampling=Sampling.from_recipe(recipe["sampling"]),
            short_side=views.short_side,
            decoder=recipe["decoder"],
            flow_engine=recipe["flow"].get("engine", AUTO) if "flow" in recipe else None,
            views=views,
            levels=LevelSpec.from_recipe(recipe["progress"]) if "progress" in recipe else None,
            bound=recipe.get("bound"),
            stack=recipe.get("stack", 1),
            axes=recipe["backbone"].get("axes"),
        )

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """As the backbone says, behind those of views and levels."""
        axes = layer_axes(recipe)
        if axes is None or "progress" not in recipe:
            return None if axes is None else f"V{axes}"
        backbone, frames, size = recipe["backbone"], recipe["sampling"]["frames"], recipe["views"]["size"]
        if "shape" in backbone:
            shape = tuple(backbone["shape"])
        else:
            shape = backbones.layer_shape(backbone["name"], backbone["layer"], frames, size)[1]
        return f"VN{axes[len(axes) - len(level_shape(shape)) :]}"

    @classmethod
    def views_in(cls, recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Crops and flips."""
        return tuple(recipe["views"]["names"]) if "views" in recipe else None

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one clip, [V, …] or [V, N, …]."""
        shape = self._segment_shape
        if self.levels is not None:
            shape = (self.levels.levels, *level_shape(shape))
        return (len(self.views.names), *shape)

    @functools.cached_property
    def _segment_shape(self) -> tuple[int, ...]:
        return backbones.layer_shape(self.backbone, self.layer, self.sampling.frames, self.views.size, self.classes)[1]

    def _backbone_recipe(self) -> dict[str, Any]:
        """Of a network from elsewhere also what is stated of it."""
        recipe = super()._backbone_recipe()
        if self.axes is None:
            return recipe
        stated = {"axes": self.axes, "shape": list(self._segment_shape)}
        return {**recipe, **external(self.backbone).to_recipe(), **stated}

    def to_recipe(self) -> Recipe:
        """See ``Stream``."""
        recipe: Recipe = {
            "stream": f"{self.backbone}/{self.layer}",
            "version": self.version,
            "layout": "fixed",
            "dtype": self.dtype,
            "decoder": self.decoder,
            "sampling": self.sampling.to_recipe(),
            "views": self.views.to_recipe(),
            "backbone": self._backbone_recipe(),
        }
        if self.flow_engine is not None:
            recipe |= {"flow": flow_recipe(self.flow_engine), "bound": self.bound}
        if self.stack > 1:
            recipe["stack"] = self.stack
        if self.levels is not None:
            recipe["progress"] = self.levels.to_recipe()
        return self._with_dtype(recipe)

    def parts(self, times: NDArray[np.float64], whole: Part) -> list[Part]:
        """The whole clip, or what each level may look at; no level sees a frame after its end."""
        if self.levels is None:
            return [whole]
        low, high = whole[:2]
        spans = (low + self.levels.spans(high - low)).tolist()
        return [(a, b, float(times[a]), float(times[b]) if b < len(times) else math.nan) for a, b in spans]

    def pairs(self, indices: NDArray[np.int32], low: int, high: int) -> NDArray[np.int32]:
        """Of flow networks a field, or a stack of fields, for each sampled frame."""
        if self.bound is None:
            return super().pairs(indices, low, high)
        return flow_pairs(indices, low, high, dense=False, fps=self.sampling.fps, stack=self.stack)

    def compute(self, clip: ClipFrames) -> NDArray[np.uint8]:
        """Segments uint8 [V × N, T, size, size, C]; N is 1 without levels."""
        if self.bound is None or self.flow_engine is None:
            frames = cut(clip.stack(self), self.views)
        else:
            frames = self._flow(clip, self.bound, self.flow_engine)
        if self.levels is None:
            return frames
        return frames.reshape(len(frames) * self.levels.levels, -1, *frames.shape[2:])

    def _flow(self, clip: ClipFrames, bound: float, engine: str) -> NDArray[np.uint8]:
        """Flow of all views as bytes, [V, T, size, size, 2 × stack]; a field that is used several times is cut once."""
        pairs, at = np.unique(clip.requests[self.name].pairs, axis=0, return_inverse=True)
        at = at.reshape(-1, self.stack)
        fields = quantise(cut(clip.flow(pairs, self.short_side, engine), self.views, flow=True), bound)
        if self.stack == 1:
            return fields[:, at[:, 0]]
        return np.stack([stacked(view, at.astype(np.int32)) for view in fields])

    def assemble(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """See ``BackboneStream``."""
        if self.levels is None:
            return features
        return features.reshape(-1, self.levels.levels, *level_shape(features.shape[1:]))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See ``BackboneStream``; each level is a segment."""
        segments = 1 if self.levels is None else self.levels.levels
        size, channels = self.views.size, backbones.input_spec(self.backbone).channels
        return (segments, self.sampling.frames or 0, size, size, channels)

    def first_view(self) -> Self:
        """See ``BackboneStream``."""
        views = replace(self.views, names=self.views.names[:1])
        return replace(self, views=views, levels=self.levels and LevelSpec(1))

    def level_inputs(self, span: ClipSpan, threads: int, device: str = "cpu") -> Iterator[tuple[float, Array]]:
        """See ``BackboneStream``; a segment of frames each time that the last of them has been decoded."""
        assert self.levels is not None
        one = self.first_view()
        with open_source(span.path, self.decoder, span.fps, device) as source:
            low, high = clip_range(source.times, span.start_s, span.stop_s)
            ends = [*source.times, source.info.duration_s]
            stops = low + self.levels.spans(high - low)[:, 1]
            request, count = self.request(source.times, span), self.levels.levels
            split = zip(np.split(request.indices, count), np.split(request.pairs, count), strict=True)
            requests = [ClipRequest(n, span, {self.name: FrameRequest(*part)}) for n, part in enumerate(split)]
            for level, clip in read_requests(source, requests, {self.short_side}, threads, device):
                yield float(ends[stops[level.number]]), one.compute(clip)
