"""Recipes of imported streams: all that is known of arrays that were computed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcache.errors import OptionError
from kdcache.recipe import Recipe
from kdcache.store.validate import check_streams
from kdcache.streams.axes import LETTERS, axes_of, check_axes
from kdcache.streams.registry import KINDS
from kdcache.streams.video import DenseStream


def imported_recipe(
    stream: str,
    shape: Sequence[int],
    dtype: str,
    source: str,
    origin: str,
    axes: str | None = None,
    levels: bool = False,
    **how: Any,
) -> Recipe:
    """The recipe of an imported stream of one shape: what the arrays are, the kind of files, who computed them.

    Args:
        stream: name.
        shape: of each clip, views first.
        dtype: stored.
        source: kind of files, such as ``npy``.
        origin: what computed the features.
        axes: of ``shape``, see ``kdcache.streams.axes``. Default: ``VD`` or ``VTD`` for vectors, not known for maps.
        levels: vectors stand for observation levels: ``VND``.
        how: further facts that make one import differ from another.

    Raises:
        OptionError: the name is that of a stream whose arrays kdcache draws and decodes itself, or axes that do not
            fit the shape.
        StoreError: the name has odd characters.
    """
    check_name(stream)
    check_levels(axes, levels)
    if levels and len(shape) != 3:
        raise OptionError(f"--levels: a clip is {list(shape)}, not [views, levels, d]; name the axes with --axes.")
    recipe = {
        "stream": stream,
        "version": 1,
        "layout": "fixed",
        "dtype": dtype,
        "shape": [int(n) for n in shape],
        "imported": {"from": source, "origin": origin, **how},
    }
    stated = "VND" if levels else axes and check_axes(axes, len(shape))
    if stated and stated != axes_of(recipe):  # else the same import as without the option: the same digest
        recipe["axes"] = stated
    return recipe


def ragged_recipe(stream: str, axes: str, dtype: str, source: str, origin: str, **how: Any) -> Recipe:
    """The recipe of an imported stream whose clips differ in length: one view each, time steps along the first axis.

    Args:
        axes: of a clip's array, without views, such as ``TD`` for vectors.

    Others as of ``imported_recipe``.

    Raises:
        OptionError: as ``imported_recipe``.
        StoreError: the name has odd characters.
    """
    check_name(stream)
    if not axes.startswith("T") or len(set(axes)) < len(axes) or set(axes) - (set(LETTERS) - {"V", "N"}):
        raise OptionError(
            f"--axes {axes}: clips that differ in length have T first and neither views nor levels, as in TD or TCHW."
        )
    return {
        "stream": stream,
        "version": 1,
        "layout": "ragged",
        "dtype": dtype,
        "axes": axes,
        "imported": {"from": source, "origin": origin, **how},
    }


def check_name(stream: str) -> None:
    """Refuse a stream's name that an import cannot have; ``OptionError`` or ``StoreError``."""
    check_streams([stream])
    if any(kind.accepts(stream) for kind in KINDS if issubclass(kind, DenseStream)):
        raise OptionError(
            f"--stream {stream}: kept for what kdcache extracts itself; write for example rulstm/{stream}."
        )


def check_levels(axes: str | None, levels: bool) -> None:
    """Refuse ``levels`` beside ``axes``; ``OptionError``."""
    if levels and axes is not None:
        raise OptionError(f"--levels and --axes {axes}: leave --levels out and write N for the axis of levels.")
