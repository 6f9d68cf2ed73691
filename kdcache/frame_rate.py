"""What can be a number of frames a second."""

from __future__ import annotations

MOST_RATE = 1e6
"""Frames a second; 1 / ``MOST_RATE`` is the least."""


def is_rate(fps: float) -> bool:
    """Whether a number of frames a second can be one; NaN is none."""
    return 1 / MOST_RATE <= fps <= MOST_RATE
