"""Clips for the functions of this package: an array of frames as it is, or a path whose frames are read."""

from __future__ import annotations

import math
import os
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError
from kdcache.sampling import Sampling, sample
from kdcache.sources import open_source
from kdcache.views import resize_short_side

U8 = NDArray[np.uint8]
Clip: TypeAlias = U8 | str | os.PathLike[str]
"""Frames as a uint8 array, or the path of a video, or of a folder or tar of frames."""


def frames_of(
    clip: Any,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    fps: float | None = None,
    short_side: int | None = None,
    gray: bool = False,
) -> U8:
    """The frames of a clip: an array is handed back as it is, and a path is read forward, once.

    Args:
        clip: a ``Clip``: an array, or the path of a video, or of a folder or tar of frames.
        start_s, stop_s: of a path, the span in seconds, half-open; ``None``: the source's start or end.
        fps: of a video, at what rate frames are taken (``None``: every frame); of a folder or tar, whose frames are
            all taken, the rate at which they were recorded, which a span in seconds refers to.
        short_side: of a path, pixels to which the short side of frames is brought; ``None``: as they are.
        gray: read a path as grey frames.

    Returns:
        Of a path, uint8 RGB [T, H, W, 3], or grey [T, H, W].

    Raises:
        SourceError: the path cannot be read.
        ClipError: the span lies outside the source.
        OptionError: neither an array nor a path, an empty span, or options of a path beside an array.
    """
    options = {"start_s": start_s, "stop_s": stop_s, "fps": fps, "short_side": short_side}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    if isinstance(clip, np.ndarray):
        if given:
            raise OptionError(f"{given[0]}: an array has no clock and no file; cut and resize it, or give a path.")
        return clip
    if not isinstance(clip, (str, os.PathLike)):
        shape = "[T, H, W]" if gray else "[T, H, W, 3]"
        raise OptionError(
            f"A clip was given as {type(clip).__name__}: give the path of a video, or a uint8 array of {shape}."
        )
    if start_s is not None and stop_s is not None and not start_s < stop_s:
        raise OptionError(f"The span from {start_s:g} s to {stop_s:g} s is empty; let it stop after it starts.")
    if short_side is not None and short_side < 1:
        raise OptionError(f"short_side is {short_side}: give a positive number of pixels.")
    return _read(clip, start_s, stop_s, fps, short_side, gray)


def _read(
    path: str | os.PathLike[str],
    start_s: float | None,
    stop_s: float | None,
    fps: float | None,
    short_side: int | None,
    gray: bool,
) -> U8:
    span = [math.nan if second is None else second for second in (start_s, stop_s)]
    with open_source(path, fps=fps) as source:
        images = source.info.container in ("folder", "tar")
        try:
            indices = sample(source.times, span[0], span[1], Sampling(frames=None, fps=None if images else fps))
        except ClipError as error:
            raise ClipError(f"{os.fspath(path)}: {error}") from error
        wanted, places = np.unique(indices, return_inverse=True)
        frames: list[Any] = []
        for frame in source.read(wanted):
            shown = resize_short_side(frame, short_side)
            frames.append(cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY) if gray else shown)
    stacked: U8 = np.stack(frames)
    return stacked if len(wanted) == len(places) else stacked[places]
