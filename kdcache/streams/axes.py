"""What a recipe says of its arrays' dimensions: their axes, whether one counts levels of progress, names of views.

Axes are written one letter a dimension:

    V views   N levels of progress   T time steps   C channels   H rows   W columns   D numbers of a vector

An I3D map is ``VCTHW``, a map of a network that looks at single images ``VTCHW``, pooled features of each frame
``VTD``, of each level ``VND``; ``rgb`` and ``flow`` are ``THWC``, ``idt`` is ``THW``. For all that is extracted here
the axes follow from the other fields of the recipe, so they are not stored and digests do not change; an imported
stream states them under ``axes`` where they do not follow. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache import backbones
from kdcache.errors import OptionError

LETTERS = {
    "V": "views",
    "N": "levels",
    "T": "time steps",
    "C": "channels",
    "H": "rows",
    "W": "columns",
    "D": "numbers of a vector",
}
_DENSE = {"rgb": "THWC", "flow": "THWC", "flow-warped": "THWC", "idt": "THW"}


def axes_of(recipe: Mapping[str, Any]) -> str | None:
    """Axes of one clip's array as ``Cache.read`` gives it, such as ``VCTHW``.

    ``None`` where they are not known: an import that does not state them, or a backbone that this version lacks.
    """
    if "axes" in recipe:
        return str(recipe["axes"])
    if "backbone" in recipe:
        return _feature_axes(recipe)
    if "imported" in recipe:
        return _imported_axes(recipe)
    return _DENSE.get(str(recipe.get("stream")))


def has_levels(recipe: Mapping[str, Any]) -> bool:
    """Whether the array has degrees of progress, of which each knows nothing of what follows its part of the clip.

    A stream of time steps has none, whatever its number of dimensions: a network may have looked ahead.
    """
    return "N" in (axes_of(recipe) or "")


def view_names(recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the views along ``V``: crops and flips such as ``centre-flip``, or ``straight``, ``turned-1`` … of
    skeletons. Empty for whole-clip streams, which have no views; ``None`` where the recipe does not say.
    """
    if "views" in recipe:
        return tuple(recipe["views"]["names"])
    if "skeleton" in recipe:
        return ("straight", *(f"turned-{v}" for v in range(1, 1 + recipe["skeleton"]["rotations"])))
    return () if recipe.get("stream") in _DENSE else None


def check_axes(axes: str, dimensions: int) -> str:
    """``axes`` of an array with so many dimensions, as a user states them, views first; ``OptionError`` if unusable."""
    known = ", ".join(f"{letter} {meaning}" for letter, meaning in LETTERS.items())
    if not axes.startswith("V") or len(set(axes)) < len(axes) or set(axes) - set(LETTERS):
        raise OptionError(f"axes {axes!r}: write V first and each letter once, as in VTD or VCTHW ({known}).")
    if len(axes) != dimensions:
        raise OptionError(f"axes {axes!r}: the arrays have {dimensions} dimensions with that of views; name each.")
    return axes


def _feature_axes(recipe: Mapping[str, Any]) -> str | None:
    name, layer = recipe["backbone"]["name"], recipe["backbone"]["layer"]
    try:
        axes = backbones.layer_axes(name, layer)
        if "progress" not in recipe:
            return f"V{axes}"
        shape = backbones.layer_shape(name, layer, recipe["sampling"]["frames"], recipe["views"]["size"])[1]
    except OptionError:  # extracted by another version, which had such a layer
        return None
    return f"VN{axes[1:] if shape[0] == 1 else axes}"  # see ``kdcache.streams.base.level_shape``


def _imported_axes(recipe: Mapping[str, Any]) -> str | None:
    """Vectors without a statement are one a time step, as the importers document; maps may be in any order."""
    return {2: "VD", 3: "VTD"}.get(len(recipe.get("shape", ())))
