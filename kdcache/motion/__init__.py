"""Optical flow, improved dense trajectories and motion maps; each loads only when it is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.motion.idt import trajectories
    from kdcache.motion.maps import motion_maps
    from kdcache.motion.tvl1 import tvl1, tvl1_pairs

__all__ = ["motion_maps", "trajectories", "tvl1", "tvl1_pairs"]

_HOME = {"tvl1": "tvl1", "tvl1_pairs": "tvl1", "trajectories": "idt", "motion_maps": "maps"}


class _Package(ModuleType):
    """Keeps ``kdcache.motion.tvl1`` the function after the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value


sys.modules[__name__].__class__ = _Package
