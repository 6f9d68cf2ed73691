"""Optical flow, improved dense trajectories and motion maps; each loads only when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.motion.idt import trajectories
    from kdcache.motion.maps import motion_maps
    from kdcache.motion.tv_l1 import tvl1, tvl1_pairs

__all__ = ["motion_maps", "trajectories", "tvl1", "tvl1_pairs"]

_HOME = {"tvl1": "tv_l1", "tvl1_pairs": "tv_l1", "trajectories": "idt", "motion_maps": "maps"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
