"""kdcache: extract frozen video features once, then train distillation heads on them as often as you like.

    >>> import kdcache
    >>> manifest = kdcache.read_manifest("clips.csv", root="videos/")
    >>> kdcache.extract(manifest, root="videos/", out="out/", streams=["i3d-rgb/mixed4a"])
    >>> kdcache.Cache("out/").read("i3d-rgb/mixed4a", ["clip-1"]).shape
    >>> run = kdcache.train("anticipation", shards="out/", seed=0)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdcache import backbones, datasets, motion
    from kdcache.ablation import ablate
    from kdcache.evaluation import evaluate
    from kdcache.extraction.run import extract
    from kdcache.fitting import fit
    from kdcache.inference import predict
    from kdcache.manifest import read_manifest, write_manifest
    from kdcache.sheet import show
    from kdcache.store import Cache
    from kdcache.training import train

_HOME = {
    "Cache": "kdcache.store",
    "ablate": "kdcache.ablation",
    "evaluate": "kdcache.evaluation",
    "extract": "kdcache.extraction.run",
    "fit": "kdcache.fitting",
    "predict": "kdcache.inference",
    "read_manifest": "kdcache.manifest",
    "show": "kdcache.sheet",
    "train": "kdcache.training",
    "write_manifest": "kdcache.manifest",
}
_SUBPACKAGES = ("backbones", "datasets", "motion")

__all__ = [
    "Cache",
    "__version__",
    "ablate",
    "backbones",
    "datasets",
    "evaluate",
    "extract",
    "fit",
    "motion",
    "predict",
    "read_manifest",
    "show",
    "train",
    "write_manifest",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"kdcache.{name}")
    raise AttributeError(f"module 'kdcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
