"""Views: the spatial crops and flips of a segment that are cached side by side, so augmentation survives caching."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError

_NAME = re.compile(r"^(centre|tl|tr|bl|br)(?:@(0?\.\d+|1(?:\.0+)?))?(-flip)?$")


PLACES = ("centre", "tl", "tr", "bl", "br")
SCALES = ("1", "0.875", "0.75", "0.66")  # of the short side [TSN's code, which TSM's uses]
MOMENTS: tuple[Literal["first", "centre", "last"], ...] = ("first", "centre", "last")
CENTRE = MOMENTS.index("centre")
"""Which frame stands for each of the T equal parts of a clip."""


class Augmentation(NamedTuple):
    """How one example is shown once: the name of a view, and a moment (index into ``MOMENTS``) for each part."""

    crop: str
    moments: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator, parts: int, mirror: bool) -> Augmentation:
        """Another moment of each part, from a corner or the centre, at one of four scales, mirrored or not."""
        moments = rng.integers(len(MOMENTS), size=parts)
        crop = f"{rng.choice(PLACES)}@{rng.choice(SCALES)}"
        return cls(crop + ("-flip" if mirror and rng.random() < 0.5 else ""), moments)


class Box(NamedTuple):
    """One view of a resized frame: a square of ``side`` pixels at (``top``, ``left``), mirrored when ``flip``."""

    top: int
    left: int
    side: int
    flip: bool


@dataclass(frozen=True)
class Views:
    """The ``V`` views of each segment.

    size: side in pixels of the square that a backbone takes.
    resize: length in pixels to which the frame's short side is brought first; ``None`` is 8/7 of ``size``, the
        field's 256 for 224.
    names: each ``centre``, ``tl``, ``tr``, ``bl`` or ``br`` (corners), optionally ``@scale`` (side of the crop as a
        share of the short side; default ``size / resize``) and ``-flip``: ``centre``, ``tl@0.875``, ``br-flip``.
    """

    size: int = 224
    resize: int | None = None
    names: tuple[str, ...] = ("centre",)

    def __post_init__(self) -> None:
        if self.size < 16:
            raise OptionError(f"size is {self.size}: a view needs at least 16 pixels.")
        if self.resize is not None and self.resize < self.size:
            raise OptionError(f"resize {self.resize} is below size {self.size}: a crop would not fit.")
        if not self.names or len(set(self.names)) != len(self.names):
            raise OptionError(
                f"views {', '.join(self.names) or '(none)'}: name each view once, for example centre,centre-flip."
            )
        for name in self.names:
            if not _NAME.match(name):
                raise OptionError(
                    f"Unknown view {name!r}: write centre, tl, tr, bl or br, then optionally @scale and -flip, "
                    "as in tl@0.875-flip."
                )

    @property
    def short_side(self) -> int:
        """Short side in pixels of the frame that views are cut from."""
        return self.resize if self.resize is not None else round(self.size * 8 / 7)

    def to_recipe(self) -> dict[str, Any]:
        """The views as they stand in a recipe."""
        return {**asdict(self), "resize": self.short_side, "names": list(self.names)}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> Views:
        """The views that ``to_recipe`` wrote; ``resize`` is then a number, whatever it was left to be."""
        return cls(recipe["size"], recipe["resize"], tuple(recipe["names"]))


def box(name: str, height: int, width: int, views: Views) -> Box:
    """Where the view ``name`` lies in a frame of ``height`` × ``width`` pixels (already resized)."""
    match = _NAME.match(name)
    assert match is not None, name  # checked when Views was made
    place, scale, flip = match.groups()
    side = views.size if scale is None else round(min(height, width) * float(scale))
    bottom, right = height - side, width - side
    top, left = {
        "centre": (bottom // 2, right // 2),
        "tl": (0, 0),
        "tr": (0, right),
        "bl": (bottom, 0),
        "br": (bottom, right),
    }[place]
    return Box(top, left, side, flip is not None)


def resize_short_side(frame: NDArray[Any], short_side: int | None) -> NDArray[Any]:
    """Bring the short side of a frame [H, W, C], uint8 or float32, to ``short_side`` pixels (``None``: leave it),
    keeping its aspect.

    Shrinking averages areas, enlarging is bilinear: neither aliases.
    """
    height, width = frame.shape[:2]
    if short_side is None or min(height, width) == short_side:
        return frame
    scale = short_side / min(height, width)
    target = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    target = (short_side, target[1]) if width <= height else (target[0], short_side)
    resized = cv2.resize(frame, target, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.asarray(resized, frame.dtype).reshape(*resized.shape[:2], frame.shape[2])


def cut(segment: NDArray[Any], views: Views, *, flow: bool = False) -> NDArray[Any]:
    """Cut all views from a segment.

    Args:
        segment: [T, H, W, C], frames whose short side is ``views.short_side``; uint8 RGB, or float32 flow in pixels.
        flow: the segment is optical flow (x, y): a mirrored view changes the sign of x, a resized one the length.

    Returns:
        [V, T, size, size, C], same dtype.
    """
    height, width = segment.shape[1:3]
    out = np.empty((len(views.names), len(segment), views.size, views.size, segment.shape[3]), segment.dtype)
    for v, name in enumerate(views.names):
        top, left, side, flip = box(name, height, width, views)
        crop = segment[:, top : top + side, left : left + side]
        if side != views.size:
            crop = np.stack([cv2.resize(f, (views.size, views.size), interpolation=cv2.INTER_LINEAR) for f in crop])
            crop = crop.reshape(out.shape[1:])  # OpenCV drops the axis of a single channel
            if flow:
                crop = crop * np.float32(views.size / side)
        out[v] = crop[:, :, ::-1] if flip else crop
        if flow and flip:
            out[v, ..., 0] *= -1
    return out
