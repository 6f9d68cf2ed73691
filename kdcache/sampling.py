"""Which frames of a source make up a clip's segment: a pure function of timestamps, span and rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError
from kdcache.frame_rate import is_rate

OVERRUN_S = 0.5  # annotations often end a little after the last frame; more than this is a mistake, not rounding
_SLACK_S = 1e-4  # an instant this little before a frame shows that frame: k / 30 and 0.0333 · k are the same moment
MOST_SAMPLED = 10**6  # frames of a clip that is read at a rate: nine hours at 30 a second


@dataclass(frozen=True)
class Sampling:
    """A sampling rule.

    frames: length ``T`` of the segment; ``None`` takes every frame of the clip (or every ``1 / fps`` s of it).
    fps: ``None`` spreads the ``T`` frames evenly over the clip; a number takes frames at that rate, the segment then
        lasts ``T / fps`` seconds.
    anchor: with ``fps``, where the segment lies in a clip that is longer or shorter than it: at its ``first`` frames,
        in its ``centre`` or at its ``last`` frames. Missing frames repeat the clip's edge frame. Without ``fps``,
        which frame stands for each of the ``T`` equal parts of the clip. [reconstructed: the papers do not say which;
        the centre is frame (i + 1/2) n / T, ``first`` is i n / T]
    """

    frames: int | None = 32
    fps: float | None = None
    anchor: Literal["first", "centre", "last"] = "centre"

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise OptionError(f"frames is {self.frames}: a segment needs at least 1 frame.")
        if self.fps is not None and not is_rate(self.fps):
            raise OptionError(f"fps is {self.fps}: give frames a second, like 25 or 29.97.")
        if self.anchor not in ("first", "centre", "last"):
            raise OptionError(f"anchor is {self.anchor!r}: choose first, centre or last.")

    def to_recipe(self) -> dict[str, Any]:
        """The rule as it stands in a recipe."""
        return asdict(self)

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> Sampling:
        """The rule that ``to_recipe`` wrote."""
        return cls(**recipe)


def clip_range(times: NDArray[np.float64], start_s: float, stop_s: float) -> tuple[int, int]:
    """Half-open index range of the frames of a span.

    Args:
        times: float64 [N], seconds, strictly increasing.
        start_s, stop_s: the span in seconds, half-open; NaN stands for the source's start or end.

    Returns:
        ``(low, high)`` with ``start_s <= times[low:high] < stop_s``. A span between two frames holds the one frame
        that is on screen at ``start_s``. ``times[high - 1]`` is never at or after ``stop_s``.

    Raises:
        ClipError: the span begins after the last frame or ends more than ``OVERRUN_S`` after the source does.
    """
    n = len(times)
    if n == 0:
        raise ClipError("The source has no frames; remove its rows from the manifest.")
    shown = float(np.median(np.diff(times))) if n > 1 else 0.04  # how long the last frame stays on screen
    end = float(times[-1]) + shown
    if not math.isnan(start_s) and start_s >= end:
        raise ClipError(f"The clip starts at {start_s:g} s but the source ends at {end:.3f} s; correct its start_s.")
    if not math.isnan(stop_s) and stop_s > end + OVERRUN_S:
        raise ClipError(f"The clip stops at {stop_s:g} s but the source ends at {end:.3f} s; correct its stop_s.")
    low = 0 if math.isnan(start_s) else int(np.searchsorted(times, start_s - _SLACK_S, side="left"))
    high = n if math.isnan(stop_s) else int(np.searchsorted(times, stop_s - _SLACK_S, side="left"))
    if high <= low:  # shorter than a frame: what is on screen when the clip starts
        low = max(0, min(low, n) - 1)
        high = low + 1
    return low, high


def sample(times: NDArray[np.float64], start_s: float, stop_s: float, rule: Sampling) -> NDArray[np.int32]:
    """Source frame indices of a clip's segment.

    Returns:
        int32 [T], non-decreasing, each within ``clip_range(times, start_s, stop_s)``; ``T`` is exactly
        ``rule.frames`` when that is given.

    Raises:
        ClipError: as ``clip_range``.
    """
    low, high = clip_range(times, start_s, stop_s)
    return within(times, low, high, start_s, stop_s, rule)


def within(
    times: NDArray[np.float64], low: int, high: int, start_s: float, stop_s: float, rule: Sampling
) -> NDArray[np.int32]:
    """``sample`` where the frames ``low`` to before ``high`` of the span are known: int32 [T], none outside them."""
    n = high - low
    if rule.fps is None:
        if rule.frames is None:
            return np.arange(low, high, dtype=np.int32)
        phase = {"first": 0.0, "centre": 0.5, "last": 1.0}[rule.anchor]
        parts = (np.arange(rule.frames) + phase) * n / rule.frames
        if rule.anchor == "last":  # the last frame of each part, which ends just before the next part begins
            parts = np.ceil(parts) - 1
        return (low + np.clip(np.floor(parts + 1e-9), 0, n - 1)).astype(np.int32)

    step = 1.0 / rule.fps
    begin = float(times[low]) if math.isnan(start_s) else start_s
    last_shown = float(times[high - 1]) + (float(np.median(np.diff(times))) if len(times) > 1 else step)
    end = last_shown if math.isnan(stop_s) else min(stop_s, last_shown)
    count = rule.frames if rule.frames is not None else max(1, round((end - begin) / step))
    if rule.frames is None and count > MOST_SAMPLED:
        raise ClipError(
            f"The clip lasts {end - begin:g} s, which are {count:,} frames at {rule.fps:g} a second, more than "
            f"{MOST_SAMPLED:,}; check its span and the source's frame rate, or give a smaller fps."
        )
    room = (end - begin) - count * step  # negative when the clip is shorter than the segment
    offset = {"first": 0.0, "centre": room / 2, "last": room}[rule.anchor]
    instants = begin + offset + np.arange(count) * step
    shown = np.searchsorted(times, instants + _SLACK_S, side="right") - 1
    return np.clip(shown, low, high - 1).astype(np.int32)
