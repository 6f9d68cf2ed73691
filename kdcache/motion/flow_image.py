"""Optical flow as bytes for two-stream networks, and as a picture for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError

ZERO = 128  # the byte of no motion


def quantise(flow: NDArray[np.floating[Any]], bound: float = 20.0) -> NDArray[np.uint8]:
    """Flow in pixels as bytes of the same shape: ``round(128 + flow * 127 / bound)``.

    Flow is first clipped to ±``bound`` pixels; 128 is no motion, 1 is −bound and 255 is +bound, so a mirrored
    x component is exactly ``256 - byte`` (the field's ±20 px convention, as in I3D's and TSN's flow images).
    Raises OptionError for a bound that is not above 0 and for flow that is not finite.
    """
    _check_bound(bound)
    flow = np.asarray(flow, np.float32)
    if not np.isfinite(flow).all():
        raise OptionError("Flow has values that are not finite: it cannot be stored as bytes.")
    scale = np.float32((ZERO - 1) / bound)
    stored: NDArray[np.uint8] = np.rint(np.clip(flow, -bound, bound) * scale + np.float32(ZERO)).astype(np.uint8)
    return stored


def dequantise(stored: NDArray[np.uint8], bound: float = 20.0) -> NDArray[np.float32]:
    """Bytes back to flow in pixels, float32: ``(byte - 128) * bound / 127``.

    The error is at most half a step, ``bound / 254`` pixels (0.079 for 20), for flow within the bound.
    Raises OptionError for a bound that is not above 0 and for other dtypes than uint8.
    """
    _check_bound(bound)
    if stored.dtype != np.uint8:
        raise OptionError(f"Stored flow has dtype {stored.dtype}: give uint8.")
    return (stored.astype(np.float32) - ZERO) * np.float32(bound / (ZERO - 1))


def _check_bound(bound: float) -> None:
    if not (np.isfinite(bound) and bound > 0):
        raise OptionError(f"Flow bound is {bound}: give a number of pixels above 0.")


# The Middlebury flow wheel (Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011):
# where round the circle red, yellow, green, cyan, blue, magenta and red again stand.
_PLACES = np.array([0, 15, 21, 25, 36, 49, 55]) / 55
_COLOURS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.float32)


def colour_wheel(flow: NDArray[np.floating[Any]], max: float | None = None) -> NDArray[np.uint8]:
    """Flow [..., 2] in pixels as RGB [..., 3]: hue is direction, saturation is speed, white is no motion.

    ``max`` is the speed in pixels of full saturation (default: the fastest pixel); faster pixels are darker.
    Pixels whose flow is not finite are black. Raises OptionError for another last dimension or a ``max``
    that is not above 0.
    """
    flow = np.asarray(flow, np.float32)
    if flow.ndim < 1 or flow.shape[-1] != 2:
        raise OptionError(f"Flow has shape {list(flow.shape)}: give [..., 2].")
    if max is not None and not (np.isfinite(max) and max > 0):
        raise OptionError(f"Speed of full saturation is {max}: give a number of pixels above 0.")
    known = np.isfinite(flow).all(-1)
    x, y = np.moveaxis(np.where(known[..., None], flow, 0), -1, 0)
    speed = np.hypot(x, y)
    speed = speed / (max if max is not None else (float(speed.max(initial=0)) or 1.0))
    turn = (np.arctan2(-y, -x) / np.pi + 1) / 2
    hue = np.stack([np.interp(turn, _PLACES, channel) for channel in _COLOURS.T], -1)
    pale, beyond = speed[..., None], speed[..., None] > 1 + 1e-6
    colour = np.where(beyond, 0.75 * hue, 1 - np.minimum(pale, 1) * (1 - hue))
    return np.where(known[..., None], np.rint(255 * colour), 0).astype(np.uint8)


def legend(size: int) -> NDArray[np.uint8]:
    """The wheel itself, RGB [size, size, 3]: each point has the colour of flow towards it, the rim of ``max``."""
    if size < 1:
        raise OptionError(f"Legend size is {size}: give a number of pixels above 0.")
    across = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    flow = np.stack(np.meshgrid(across, across), -1)
    disc = np.hypot(flow[..., 0], flow[..., 1]) <= 1
    return np.where(disc[..., None], colour_wheel(flow, 1.0), np.uint8(255))
