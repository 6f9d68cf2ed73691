"""What a recipe says of its arrays' dimensions: their axes, whether one counts observation levels, names of views.

Axes are written one letter a dimension:

    V views   N observation levels   T time steps   C channels   H rows   W columns   D numbers of a vector
    P positions without an order (tokens of a transformer)

An I3D map is ``VCTHW``, a map of a network that looks at single images ``VTCHW``, pooled features of each frame
``VTD``, of each level ``VND``; ``rgb`` and ``flow`` are ``THWC``, ``idt`` is ``THW``. For all that is extracted here
the axes follow from the other fields of the recipe, so they are not stored and digests do not change; an imported
stream states them under ``axes`` where they do not follow. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdcache.errors import OptionError

if TYPE_CHECKING:
    from kdcache.streams.base import CachedKind

LETTERS = {
    "V": "views",
    "N": "levels",
    "T": "time steps",
    "C": "channels",
    "H": "rows",
    "W": "columns",
    "D": "numbers of a vector",
    "P": "positions",
}


def axes_of(recipe: Mapping[str, Any]) -> str | None:
    """Axes of one clip's array as ``Cache.read`` gives it, such as ``VCTHW``.

    ``None`` where they are not known: an import that does not state them, or a backbone that this version lacks.
    """
    return _kind_of(recipe).axes_in(recipe)


def has_levels(recipe: Mapping[str, Any]) -> bool:
    """Whether the array has observation levels, of which each knows nothing of what follows its part of the clip.

    A stream of time steps has none, whatever its number of dimensions: a network may have looked ahead.
    """
    return "N" in (axes_of(recipe) or "")


def view_names(recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the views along ``V``: crops and flips such as ``centre-flip``, or ``straight``, ``turned-1`` … of
    skeletons. Empty for whole-clip streams, which have no views; ``None`` where the recipe does not say.
    """
    return _kind_of(recipe).views_in(recipe)


def check_axes(axes: str, dimensions: int) -> str:
    """``axes`` of an array with so many dimensions, as a user states them, views first; ``OptionError`` if unusable."""
    known = ", ".join(f"{letter} {meaning}" for letter, meaning in LETTERS.items())
    if not axes.startswith("V") or len(set(axes)) < len(axes) or set(axes) - set(LETTERS):
        raise OptionError(f"axes {axes!r}: write V first and each letter once, as in VTD or VCTHW ({known}).")
    if len(axes) != dimensions:
        raise OptionError(f"axes {axes!r}: the arrays have {dimensions} dimensions with that of views; name each.")
    return axes


def _kind_of(recipe: Mapping[str, Any]) -> type[CachedKind]:
    from kdcache.streams.registry import kind_of  # brings OpenCV, which the command line does without at its start

    return kind_of(recipe)
