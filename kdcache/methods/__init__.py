"""The distillation methods: modules with ``Options``, ``resolve``, ``stages`` and ``predictor``.

See ``kdcache.methods.contract`` for what these are. A method knows torch and ``kdcache.losses``; where tensors come
from and where numbers go is the trainer's business.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kdcache.errors import unknown

METHODS = {"anticipation": "kdcache.methods.anticipation", "early": "kdcache.methods.early"}
"""Name of each method and the module that holds it (imported only when asked for: it needs torch)."""


def method(name: str) -> ModuleType:
    """The module of a method; ``OptionError`` with the nearest name for one that does not exist."""
    if name not in METHODS:
        raise unknown("method", name, sorted(METHODS))
    return import_module(METHODS[name])
