"""Streams: what can be cached for each clip, and the recipe that each setting leads to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from kdcache.errors import OptionError, unknown
from kdcache.recipe import Recipe, digest
from kdcache.sampling import Sampling
from kdcache.views import Views

Kind = Literal["rgb", "flow", "flow-warped", "idt", "feature"]
DENSE: tuple[Kind, ...] = ("rgb", "flow", "flow-warped", "idt")  # streams that keep whole clips, frame by frame

# Raised when a change of the code changes a stream's bytes: old arrays then count as another recipe's.
VERSIONS: dict[Kind, int] = {"rgb": 1, "flow": 1, "flow-warped": 1, "idt": 1, "feature": 1}


@dataclass(frozen=True, kw_only=True)
class Settings:
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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from keyword arguments; a misspelt one is refused with the nearest that exists."""
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
    shape: tuple[int, ...] | None = None  # of one clip, [V, …]; None for whole-clip streams
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
    names: Sequence[str], settings: Settings | None = None, weights: Mapping[str, Any] | None = None
) -> list[Stream]:
    """Turn stream names and settings into streams with their recipes.

    Args:
        names: ``rgb``, ``flow``, ``flow-warped``, ``idt`` or ``backbone/layer`` such as ``i3d-rgb/mixed4a``.
        settings: sampling, views, precision and storage.
        weights: backbone → checkpoint path or ``random:SEED``; a backbone that is left out uses its published
            checkpoint, which must be on this machine or reachable.

    Raises:
        OptionError: an unknown stream, backbone or layer.
        WeightsError: a checkpoint that is missing or of another network.
    """
    settings = settings or Settings()
    if not names:
        raise OptionError("No stream was asked for: name one, for example i3d-rgb/mixed4a or flow.")
    if len(set(names)) != len(names):
        raise OptionError(f"A stream is named twice in {', '.join(names)}: name each once.")
    return [_resolve(name, settings, weights or {}) for name in names]


def _resolve(name: str, settings: Settings, weights: Mapping[str, Any]) -> Stream:
    head, layer = parse(name)
    stream = (
        _dense(name, head, settings)
        if layer is None and head in DENSE
        else _feature(name, head, layer, settings, weights)
    )
    return replace(stream, digest=digest(stream.recipe))


def _dense(name: str, kind: Kind, settings: Settings) -> Stream:
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


def _feature(name: str, head: str, layer: str | None, settings: Settings, weights: Mapping[str, Any]) -> Stream:
    from kdcache import backbones

    if head not in backbones.names():
        raise unknown("stream", name, [*DENSE, *(f"{b}/…" for b in backbones.names())])
    spec = backbones.input_spec(head)
    if layer is None:
        raise OptionError(f"Stream {name!r} names no layer: write for example {name}/{spec.default_layer}.")
    if spec.modality == "skeleton" or spec.stack > 1:
        takes = "skeletons" if spec.modality == "skeleton" else f"stacks of {spec.stack} flow fields"
        raise OptionError(f"Stream {name!r} cannot be extracted from videos yet: {head} takes {takes}.")
    sampling = Sampling(frames=settings.frames or spec.frames, fps=settings.fps, anchor=settings.anchor)
    size = settings.size or spec.size
    resize = settings.resize or (spec.resize if size == spec.size else None)
    views = Views(size=size, resize=resize, names=settings.views)
    endpoint, shape = backbones.layer_shape(head, layer, frames=sampling.frames or spec.frames, size=views.size)
    recipe: Recipe = {
        "stream": name,
        "version": VERSIONS["feature"],
        "layout": "fixed",
        "dtype": settings.dtype,
        "decoder": settings.decoder,
        "sampling": sampling.to_recipe(),
        "views": views.to_recipe(),
        "backbone": {
            "name": head,
            "layer": endpoint,
            "precision": settings.precision,
            "weights": backbones.weights_id(head, weights.get(head)),
        },
    }
    if spec.modality == "flow":
        recipe |= {"flow": _flow_recipe(), "bound": settings.bound}
    clip_shape = (len(views.names), *shape)
    return Stream(name, "feature", recipe, sampling, views.short_side, views, head, layer, clip_shape)


def _flow_recipe() -> dict[str, Any]:
    from dataclasses import asdict

    from kdcache.motion.tvl1 import TVL1Params

    return {"algorithm": "tvl1", **asdict(TVL1Params())}


def _idt_recipe() -> dict[str, Any]:
    from dataclasses import asdict

    from kdcache.motion.idt import IDTParams

    return {"algorithm": "idt", **asdict(IDTParams())}
