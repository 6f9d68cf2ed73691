"""Streams that kdcache cannot compute: imported features, and what another version has extracted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.streams.backbone import energy_strips
from kdcache.streams.base import Array, CachedKind, Strip


class ImportedStream(CachedKind):
    """Arrays of which the recipe is all that is known: they can be read and drawn, never computed."""

    @classmethod
    def owns(cls, recipe: Mapping[str, Any]) -> bool:
        """What ``kdcache import`` wrote."""
        return "imported" in recipe

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """As the import states them; vectors without a statement are one a time step, as the importers document."""
        if "axes" in recipe:
            return str(recipe["axes"])
        return {2: "VD", 3: "VTD"}.get(len(recipe.get("shape", ()))) if cls.owns(recipe) else None

    @classmethod
    def views_in(cls, recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Not known."""
        return None

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Array, frames: NDArray[np.int32]) -> list[Strip]:
        """Energy of maps over time."""
        return energy_strips(name, array, frames, cls.axes_in(recipe))
