"""Streams: what can be cached for each clip, and the recipe that each setting leads to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from kdcache.errors import OptionError, unknown
from kdcache.levels import MODES, LevelSpec
from kdcache.recipe import Recipe, digest
from kdcache.sampling import Sampling
from kdcache.views import Views

if TYPE_CHECKING:
    from kdcache.backbones import InputSpec
    from kdcache.backbones.metadata import FitMetadata
    from kdcache.skeletons.image import Imaging

Kind = Literal["rgb", "flow", "flow-warped", "idt", "feature"]
DENSE: tuple[Kind, ...] = ("rgb", "flow", "flow-warped", "idt")  # streams that keep whole clips, frame by frame

# Raised when a change of the code changes a stream's bytes: old arrays then count as another recipe's.
VERSIONS = {"rgb": 1, "flow": 1, "flow-warped": 1, "idt": 1, "feature": 1, "skeleton": 1}

# What applies to frames of video alone: with a skeleton stream these are refused, not passed over.
_VIDEO_ONLY = ("frames", "fps", "size", "resize", "views")


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How clips become streams. Every field that changes bytes goes into the recipe."""

    frames: int | None = None
    """Frames of a segment; ``None``: what the backbone was trained on (I3D: 32). Whole-clip streams ignore it."""
    fps: float | None = None
    """Sampling rate; ``None`` spreads segments over the clip and keeps every frame in whole-clip streams."""
    anchor: Literal["first", "centre", "last"] = "centre"
    """Where a segment of fixed rate lies in its clip."""
    size: int | None = None
    """Side in pixels of a backbone's input; ``None``: what the backbone was trained on."""
    resize: int | None = None
    """Short side in pixels of frames before cropping; ``None``: 8/7 of ``size``."""
    views: tuple[str, ...] = ("centre",)
    """Crops and flips cached side by side; see ``kdcache.views.Views``."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the backbone."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored type of features."""
    short_side: int = 256
    """Short side in pixels of ``rgb``, ``flow`` and ``idt``."""
    rgb: Literal["jpeg", "raw"] = "jpeg"
    """How ``rgb`` frames are kept."""
    quality: int = 95
    """JPEG quality of ``rgb``."""
    flow: Literal["uint8", "float16"] = "uint8"
    """Stored type of flow: bounded and quantised (the field's convention), or as it is."""
    bound: float = 20.0
    """Flow beyond this many pixels is clipped when stored as ``uint8`` or fed to a backbone."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """Which decoder reads videos; ``auto`` is a function of the file alone."""
    levels: int | None = None
    """Degrees of progress N: features are [V, N, …], level n from nothing after the n-th of N equal parts of the clip.
    ``None``: the whole clip at once for videos, the backbone's own number (10) for skeletons."""
    progress: Literal["segment", "prefix"] | None = None
    """What a level shows: its part alone, or all up to its end; ``None``: segment for videos, prefix for skeletons."""
    rotations: int = 0
    """Turned views of skeletons that are cached beside the straight one."""
    skeleton: Literal["scipy_bytescale", "float_bilinear"] = "scipy_bytescale"
    """How skeletons become images: the published code's 8 bits, stretched, or the paper's formula in float32."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StreamSettings:
        """StreamSettings from keyword arguments; a misspelt one is refused with the nearest that exists."""
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("option", name, names)
        given = {name: value for name, value in values.items() if value is not None}
        return cls(**{**given, "views": tuple(given["views"])} if "views" in given else given)

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise OptionError(f"quality is {self.quality}: JPEG quality lies between 1 and 100.")
        if self.short_side < 32:
            raise OptionError(f"short_side is {self.short_side}: frames need at least 32 pixels.")
        if self.levels is not None and self.levels < 1:
            raise OptionError(f"levels is {self.levels}: a clip is cut into at least 1 part.")
        if self.progress not in (None, *MODES):
            raise OptionError(
                f"progress is {self.progress!r}: it is segment or prefix, what a level shows (bar=False hides the bar)."
            )
        if not self.bound > 0:
            raise OptionError(f"bound is {self.bound}: give a positive number of pixels.")


@dataclass(frozen=True)
class Stream:
    """One stream with everything a worker needs to compute it."""

    name: str
    kind: Kind
    recipe: Recipe
    sampling: Sampling
    short_side: int
    views: Views | None = None
    backbone: str | None = None
    layer: str | None = None
    shape: tuple[int, ...] | None = None  # of one clip, [V, …] or [V, N, …]; None for whole-clip streams
    progress: LevelSpec | None = None  # of videos: each level is a segment of its own
    imaging: Imaging | None = None  # of skeletons
    stack: int = 1  # flow fields that make up one frame of a segment
    digest: str = field(default="")

    @property
    def needs_flow(self) -> bool:
        """Whether TV-L1 flow has to be computed for this stream."""
        return self.kind in ("flow", "flow-warped") or (self.kind == "feature" and self.recipe.get("flow") is not None)


def parse(name: str) -> tuple[str, str | None]:
    """Split a stream's name into what is computed and the layer: ``i3d-rgb/mixed4a`` → (``i3d-rgb``, ``mixed4a``)."""
    head, _, layer = name.partition("/")
    return head, layer or None


def resolve(
    names: Sequence[str], settings: StreamSettings | None = None, weights: Mapping[str, Any] | None = None
) -> list[Stream]:
    """Turn stream names and settings into streams with their recipes.

    Args:
        names: ``rgb``, ``flow``, ``flow-warped``, ``idt`` or ``backbone/layer`` such as ``i3d-rgb/mixed4a``.
        settings: sampling, views, precision and storage.
        weights: backbone → checkpoint path or ``random:SEED``; a backbone that is left out uses its published
            checkpoint, which must be on this machine or reachable.

    Raises:
        OptionError: an unknown stream, backbone or layer; a setting that these streams cannot honour; streams of videos
            beside streams of skeletons.
        WeightsError: a checkpoint that is missing or of another network.
    """
    settings = settings or StreamSettings()
    if not names:
        raise OptionError("No stream was asked for: name one, for example i3d-rgb/mixed4a or flow.")
    if len(set(names)) != len(names):
        raise OptionError(f"A stream is named twice in {', '.join(names)}: name each once.")
    streams = [_resolve(name, settings, named(weights)) for name in names]
    skeletons = [s.name for s in streams if s.imaging is not None]
    if skeletons and len(skeletons) < len(streams):
        other = next(s.name for s in streams if s.imaging is None)
        raise OptionError(f"{skeletons[0]} reads skeleton files and {other} videos: extract them in two calls.")
    if settings.rotations and not skeletons:
        raise OptionError(f"rotations is {settings.rotations}, but {names[0]} reads videos: leave it out.")
    if settings.progress and not settings.levels and not skeletons:
        raise OptionError(f"progress is {settings.progress}: say of how many levels, for example levels=10.")
    return streams


def named(weights: Mapping[str, Any] | None) -> dict[str, Any]:
    """``weights`` by the backbones' own names, aliases replaced."""
    from kdcache.backbones import canonical

    return {canonical(name): value for name, value in (weights or {}).items()}


def _resolve(name: str, settings: StreamSettings, weights: Mapping[str, Any]) -> Stream:
    head, layer = parse(name)
    stream = (
        _dense(name, head, settings)
        if layer is None and head in DENSE
        else _feature(name, head, layer, settings, weights)
    )
    return replace(stream, digest=digest(stream.recipe))


def _dense(name: str, kind: Kind, settings: StreamSettings) -> Stream:
    sampling = Sampling(frames=None, fps=settings.fps)
    recipe: Recipe = {
        "stream": name,
        "version": VERSIONS[kind],
        "decoder": settings.decoder,
        "sampling": sampling.to_recipe(),
        "short_side": settings.short_side,
    }
    if kind == "rgb":
        recipe |= {"layout": "jpeg", "dtype": "uint8", "quality": settings.quality}
        if settings.rgb == "raw":
            recipe |= {"layout": "ragged"}
            del recipe["quality"]
    elif kind == "idt":
        recipe |= {"layout": "ragged", "dtype": "uint8", "idt": _idt_recipe()}
    else:
        recipe |= {"layout": "ragged", "dtype": settings.flow, "flow": _flow_recipe()}
        if settings.flow == "uint8":
            recipe["bound"] = settings.bound
    return Stream(name, kind, recipe, sampling, settings.short_side)


def _feature(name: str, head: str, layer: str | None, settings: StreamSettings, weights: Mapping[str, Any]) -> Stream:
    from kdcache import backbones

    backbone = backbones.canonical(head)
    if backbone not in backbones.names():
        known = (*backbones.names(), *backbones.ALIASES)
        raise unknown("stream", name, [*DENSE, *(f"{b}/…" for b in known)])
    spec = backbones.input_spec(backbone)
    if layer is None:
        raise OptionError(f"Stream {name!r} names no layer: write for example {name}/{spec.default_layer}.")
    if spec.modality == "skeleton":
        return _skeleton(name, backbone, layer, settings, spec, weights.get(backbone))
    sampling = Sampling(frames=settings.frames or spec.frames, fps=settings.fps, anchor=settings.anchor)
    size = settings.size or spec.size
    resize = settings.resize or (spec.resize if size == spec.size else None)
    views = Views(size=size, resize=resize, names=settings.views)
    endpoint, shape = backbones.layer_shape(backbone, layer, frames=sampling.frames or spec.frames, size=views.size)
    recipe: Recipe = {
        "stream": f"{backbone}/{layer}",
        "version": VERSIONS["feature"],
        "layout": "fixed",
        "dtype": settings.dtype,
        "decoder": settings.decoder,
        "sampling": sampling.to_recipe(),
        "views": views.to_recipe(),
        "backbone": _backbone_recipe(backbone, endpoint, settings, weights.get(backbone)),
    }
    if spec.modality == "flow":
        recipe |= {"flow": _flow_recipe(), "bound": settings.bound}
        if spec.stack > 1:
            recipe["stack"] = spec.stack
    progress = None
    if settings.levels is not None:
        progress = LevelSpec(settings.levels, settings.progress or "segment")
        recipe["progress"] = progress.to_recipe()
        shape = (progress.levels, *level_shape(shape))
    clip_shape = (len(views.names), *shape)
    return Stream(
        name,
        "feature",
        recipe,
        sampling,
        views.short_side,
        views,
        backbone,
        layer,
        clip_shape,
        progress=progress,
        stack=spec.stack,
    )


def level_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Features of one level: those of its segment, less the axis of clips of a network that counts them (TSM's 1)."""
    return shape[1:] if shape[0] == 1 else shape


def _skeleton(name: str, backbone: str, layer: str, settings: StreamSettings, spec: InputSpec, weights: Any) -> Stream:
    """A stream of skeleton images; the limits are those of the clips that the weights were fitted on, else NTU's."""
    from kdcache import backbones
    from kdcache.skeletons.image import NTU_LIMITS, Imaging

    for option in _VIDEO_ONLY:
        if getattr(settings, option) != getattr(StreamSettings, option):
            raise OptionError(f"{option} is for videos and {name} reads skeletons: leave it out.")
    progress = LevelSpec(settings.levels if settings.levels is not None else spec.frames, settings.progress or "prefix")
    facts = facts_of(backbone, weights)
    limits = facts.limits if facts is not None and facts.limits is not None else NTU_LIMITS
    imaging = Imaging(progress, limits, settings.skeleton, settings.rotations)
    endpoint, shape = backbones.layer_shape(backbone, layer, frames=progress.levels)
    recipe: Recipe = {
        "stream": f"{backbone}/{layer}",
        "version": VERSIONS["skeleton"],
        "layout": "fixed",
        "dtype": settings.dtype,
        "skeleton": imaging.to_recipe(),
        "backbone": _backbone_recipe(backbone, endpoint, settings, weights),
    }
    clip_shape = (1 + settings.rotations, *shape)
    return Stream(
        name, "feature", recipe, Sampling(frames=None), spec.size, None, backbone, layer, clip_shape, imaging=imaging
    )


def facts_of(backbone: str, weights: Any) -> FitMetadata | None:
    """What the chosen weights say of their fit; ``None`` for published and random ones."""
    from kdcache.backbones.metadata import read_metadata
    from kdcache.backbones.weights import resolve

    path = resolve(backbone, weights).path
    return None if path is None else read_metadata(path)


def _backbone_recipe(backbone: str, endpoint: str, settings: StreamSettings, weights: Any) -> dict[str, Any]:
    from kdcache.backbones import weights_id

    identity = weights_id(backbone, weights)
    return {"name": backbone, "layer": endpoint, "precision": settings.precision, "weights": identity}


def _flow_recipe() -> dict[str, Any]:
    from dataclasses import asdict

    from kdcache.motion.tv_l1 import TVL1Params

    return {"algorithm": "tvl1", **asdict(TVL1Params())}


def _idt_recipe() -> dict[str, Any]:
    from dataclasses import asdict

    from kdcache.motion.idt import IDTParams

    return {"algorithm": "idt", **asdict(IDTParams())}
