"""Features of skeletons: images of joints at every observation level, through a frozen network."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from kdcache import backbones
from kdcache.backbones.metadata import read_metadata
from kdcache.errors import ClipError, OptionError
from kdcache.levels import LevelSpec
from kdcache.recipe import Recipe, clip_key
from kdcache.skeletons import JointLayout, Skeleton, first_array, open_skeleton
from kdcache.skeletons.arrays import STATE
from kdcache.skeletons.image import NTU_LIMITS, SIDE, Imaging, level_image
from kdcache.streams.backbone import BackboneStream, split_name
from kdcache.streams.base import Array, Choose, ClipData, ClipSpan
from kdcache.streams.settings import StreamSettings

# What applies to frames of video alone: here it is refused, not passed over.
_VIDEO_ONLY = ("frames", "fps", "size", "resize", "views", "axes")


@dataclass
class ClipJoints(ClipData):
    """A clip of a skeleton file."""

    skeleton: Skeleton


@dataclass(frozen=True, kw_only=True)
class SkeletonStream(BackboneStream):
    """Features [V, N, …] of N levels, straight and turned; images hold the limits of the clips that weights saw."""

    imaging: Imaging
    joint_layout: JointLayout | None = None
    """Of files that are arrays, as it was stated."""

    medium: ClassVar[str] = "skeleton files"
    column: ClassVar[str] = "skeleton"

    @classmethod
    def _feeds(cls, spec: backbones.InputSpec) -> bool:
        return spec.modality == "skeleton"

    @classmethod
    def check(cls, name: str, settings: StreamSettings) -> None:
        """Refuse what is for videos."""
        for option in _VIDEO_ONLY:
            if getattr(settings, option) != getattr(StreamSettings, option):
                raise OptionError(f"{option} is for videos and {name} reads skeletons: leave it out.")
        JointLayout.stated(settings.centre_joint, settings.skeleton_fps, settings.array)

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        """See ``Stream``; limits are those of the clips that the weights were fitted on, else NTU's."""
        backbone, layer, spec = split_name(name)
        levels = LevelSpec(
            settings.levels if settings.levels is not None else spec.frames, settings.progress or "prefix"
        )
        Imaging(levels, NTU_LIMITS, settings.skeleton, settings.rotations)  # refuses before weights are looked for
        backbones.layer_shape(backbone, layer, levels.levels)
        weights = choose(backbone)
        fit = None if weights.path is None else read_metadata(weights.path)
        limits = fit.limits if fit is not None and fit.limits is not None else NTU_LIMITS
        return cls(
            name=name,
            backbone=backbone,
            layer=layer,
            weights=weights,
            precision=settings.precision,
            dtype=settings.dtype,
            imaging=Imaging(levels, limits, settings.skeleton, settings.rotations),
            joint_layout=JointLayout.stated(settings.centre_joint, settings.skeleton_fps, settings.array),
        )

    @classmethod
    def from_recipe(cls, name: str, recipe: Recipe, choose: Choose) -> Self:
        """See ``Stream``."""
        common = cls._common_in(recipe, name)
        imaging = Imaging.from_recipe(recipe["skeleton"])
        layout = JointLayout.from_recipe(recipe["joints"]) if "joints" in recipe else None
        return cls(**common, weights=choose(common["backbone"]), imaging=imaging, joint_layout=layout)

    def check_sources(self, paths: Sequence[str]) -> None:
        """See ``Stream``: arrays of joints need a layout."""
        if self.joint_layout is None and (path := first_array(paths)) is not None:
            raise OptionError(f"{path}: an array says neither its centre joint nor its frame rate; {STATE}.")

    @classmethod
    def views_in(cls, recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
        """``straight``, and ``turned-1`` … ."""
        if "skeleton" not in recipe:
            return None
        return ("straight", *(f"turned-{v}" for v in range(1, 1 + recipe["skeleton"]["rotations"])))

    @classmethod
    def undrawn(cls, clip: str, names: str) -> str:
        """See ``Stream``."""
        return (
            f"of clip {clip!r} there are only features of a skeleton ({names}), and caches "
            "keep no joints: there is nothing to draw."
        )

    @classmethod
    def read(
        cls, spans: Sequence[ClipSpan], streams: Sequence[SkeletonStream], threads: int, device: str = "cpu"
    ) -> Iterator[tuple[int, ClipData | ClipError]]:
        """Open a skeleton file once and cut its clips."""
        source = open_skeleton(spans[0].path, streams[0].joint_layout)
        for number, span in enumerate(spans):
            try:
                skeleton = source.span(span.start_s, span.stop_s)
            except ClipError as error:
                yield number, error
                continue
            yield number, ClipJoints(span, _origin(skeleton, span.fingerprint), skeleton)

    @property
    def levels(self) -> LevelSpec:
        """Observation levels."""
        return self.imaging.progress

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one clip, [V, N, …]."""
        shape = backbones.layer_shape(self.backbone, self.layer, self.levels.levels, classes=self.classes)[1]
        return (1 + self.imaging.rotations, *shape)

    def to_recipe(self) -> Recipe:
        """See ``Stream``."""
        recipe: Recipe = {
            "stream": f"{self.backbone}/{self.layer}",
            "version": self.version,
            "layout": "fixed",
            "dtype": self.dtype,
            "skeleton": self.imaging.to_recipe(),
            "backbone": self._backbone_recipe(),
        }
        if self.joint_layout is not None:
            recipe["joints"] = self.joint_layout.to_recipe()
        return self._with_dtype(recipe)

    def frames(self, clip: ClipJoints) -> NDArray[np.int32]:
        """One frame a level: the last that it shows."""
        last = self.levels.spans(clip.skeleton.total)[:, 1] - 1
        return (clip.skeleton.begin + last).astype(np.int32)

    def compute(self, clip: ClipJoints) -> Array:
        """Images [V, N, 224, 224, 3], uint8 or float32.

        Turned views depend on the file's content and the span, not on the clip's name: another name for the same clip
        finds the same arrays.
        """
        span = clip.span
        seed = int(clip_key("", span.fingerprint, span.start_s, span.stop_s), 16)
        return self.imaging.images(clip.skeleton, seed)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """See ``BackboneStream``; an image for each level, in one segment."""
        return (1, self.levels.levels, SIDE, SIDE, 3)

    def first_view(self) -> Self:
        """See ``BackboneStream``."""
        return replace(self, imaging=replace(self.imaging, progress=LevelSpec(1, self.levels.mode), rotations=0))

    def level_inputs(self, span: ClipSpan, threads: int, device: str = "cpu") -> Iterator[tuple[float, Array]]:
        """See ``BackboneStream``; an image each time, from the frames up to the end of a part."""
        skeleton = open_skeleton(span.path, self.joint_layout).span(span.start_s, span.stop_s)
        for start, stop in self.levels.spans(skeleton.total).tolist():
            image = level_image(skeleton, start, stop, self.imaging.limits, self.imaging.resize)
            yield (skeleton.begin + stop) / skeleton.fps, image[None, None]


def _origin(skeleton: Skeleton, fingerprint: str) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "decoder": f"joints of {skeleton.kind}",
        "joints": skeleton.joints.shape[1],
        "fps": skeleton.fps,
        "frames": skeleton.total,
    }
