"""What can be cached for each clip: one kind of stream a file."""

from __future__ import annotations

from kdcache.streams.axes import axes_of, has_levels, view_names

__all__ = ["axes_of", "has_levels", "view_names"]
