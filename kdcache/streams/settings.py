"""The settings of streams. Light enough for the command line, which generates its options from the fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kdcache.errors import OptionError, unknown


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How clips become streams. Every field that changes bytes goes into the recipe.

    The string below a field is its help on the command line, too, where what follows "``None``:" is shown as default.
    """

    frames: int | None = None
    """Frames of a segment; whole-clip streams ignore it. ``None``: what the backbone was trained on (I3D: 32)."""
    fps: float | None = None
    """Sampling rate.
    ``None``: that of ``--dataset``, else segments spread over the clip and whole-clip streams keep every frame."""
    anchor: Literal["first", "centre", "last"] = "centre"
    """Where a segment of fixed rate lies in its clip."""
    size: int | None = None
    """Side in pixels of a backbone's input. ``None``: what the backbone was trained on."""
    resize: int | None = None
    """Short side in pixels of frames before cropping. ``None``: 8/7 of ``size``."""
    views: tuple[str, ...] = ("centre",)
    """Crops and flips cached side by side, such as centre,tl@0.875-flip; see ``kdcache.views``."""
    axes: str | None = None
    """Axes of a layer of a network from elsewhere, one letter each, such as CTHW or TPD.
    ``None``: what is known of the network."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the backbone."""
    dtype: Literal["float16", "float32", "uint8"] = "float16"
    """Stored type of features; ``uint8`` has one scale and offset a channel (vectors: one a vector) and is read as
    float16."""
    short_side: int | None = None
    """Short side in pixels of ``rgb``, ``flow`` and ``idt``; smaller sources are enlarged to a number that is given.
    ``None``: 256, and smaller sources keep their size."""
    rgb: Literal["jpeg", "raw"] = "jpeg"
    """How ``rgb`` frames are kept."""
    quality: int = 95
    """JPEG quality of ``rgb``."""
    flow: Literal["uint8", "float16"] = "uint8"
    """Stored type of flow: bounded and quantised (the field's convention), or as it is."""
    bound: float = 20.0
    """Flow beyond this many pixels is clipped when stored as ``uint8`` or fed to a backbone."""
    flow_engine: Literal["auto", "cpu", "torch"] = "auto"
    """What computes flow: compiled code, or torch on the run's device; ``auto``: torch on a GPU, and what either has
    cached counts."""
    decoder: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    """Which decoder reads videos, to the same pixels; ``auto``: PyAV, the faster. ``torchcodec``: on the run's GPU, to
    nearly the same pixels."""
    levels: int | None = None
    """Observation levels N: features are [V, N, …], level n from nothing after the n-th of N equal parts of the clip.
    ``None``: the whole clip at once for videos, the backbone's own number (10) for skeletons."""
    progress: Literal["segment", "prefix"] | None = None
    """What a level shows: its part alone, or all up to its end. ``None``: segment for videos, prefix for skeletons.
    [reconstructed: the paper speaks of features of segments]"""
    rotations: int = 0
    """Turned views of skeletons that are cached beside the straight one."""
    skeleton: Literal["scipy_bytescale", "float_bilinear"] = "scipy_bytescale"
    """How skeletons become images: the published code's 8 bits, stretched, or the paper's formula in float32."""
    centre_joint: int | None = None
    """Joint in the middle of a body (0, 1, …) of skeletons in .npy and .npz files.
    ``None``: that of the file's format; these files need it stated."""
    skeleton_fps: float | None = None
    """Frames a second of skeletons in .npy and .npz files.
    ``None``: those of the file's format; these files need it stated."""
    array: str | None = None
    """Which array of .npz skeleton files holds the joints. ``None``: the only one."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> StreamSettings:
        """Settings from keyword arguments; a misspelt one is refused with the nearest that exists."""
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("option", name, names)
        given = {name: value for name, value in values.items() if value is not None}
        return cls(**{**given, "views": tuple(given["views"])} if "views" in given else given)

    def __post_init__(self) -> None:
        for name, (least, most, what) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # nor is NaN
                raise OptionError(f"{name} is {value}: {what} is from {least:g} to {most:g}.")
        if self.progress not in (None, "segment", "prefix"):
            raise OptionError(
                f"progress is {self.progress!r}: it is segment or prefix, what a level shows (bar=False hides the bar)."
            )
        for name in _CHOICES:
            value = getattr(self, name)
            if value is not None and value not in _CHOICES[name]:
                raise unknown(name, value, _CHOICES[name])


_RANGES = {
    "frames": (1, 10_000, "the number of frames of a segment"),
    "fps": (0.001, 100_000, "a rate in frames a second"),
    "size": (1, 8192, "the side of an input in pixels"),
    "resize": (1, 8192, "the short side in pixels"),
    "quality": (1, 100, "JPEG quality"),
    "short_side": (32, 8192, "the short side in pixels"),
    "bound": (1e-3, 1e6, "the largest flow in pixels"),
    "levels": (1, 10_000, "the number of parts of a clip"),
    "rotations": (0, 10_000, "the number of turned views"),
    "centre_joint": (0, 10_000, "the number of a joint"),
    "skeleton_fps": (0.001, 100_000, "a rate in frames a second"),
}
"""Of what is a number: the least, the largest, and what it is."""


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a ``Literal``, or of ``Literal | None``; empty for any other type."""
    parts = [kind] if get_origin(kind) is Literal else [p for p in get_args(kind) if get_origin(p) is Literal]
    return tuple(value for part in parts for value in get_args(part))


_CHOICES = {name: found for name, kind in get_type_hints(StreamSettings).items() if (found := choices(kind))}
