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
    from kdcache import backbones, datasets, exchange, methods, motion
    from kdcache.data.cache import Cache
    from kdcache.errors import (
        ClipError,
        DeviceError,
        KdcacheError,
        ManifestError,
        OptionError,
        SourceError,
        StoreError,
        WeightsError,
        WriteError,
    )
    from kdcache.extraction.run import extract
    from kdcache.manifest import read_manifest, write_manifest
    from kdcache.report.ablation import ablate
    from kdcache.report.sheet import show
    from kdcache.runs.cost import cost
    from kdcache.runs.evaluate import evaluate
    from kdcache.runs.fit import fit
    from kdcache.runs.online import predict
    from kdcache.runs.run import Run
    from kdcache.runs.submit import submit
    from kdcache.runs.train import train
    from kdcache.store.copying import copy

_HOME = {
    "Cache": "kdcache.data.cache",
    "ClipError": "kdcache.errors",
    "DeviceError": "kdcache.errors",
    "KdcacheError": "kdcache.errors",
    "ManifestError": "kdcache.errors",
    "OptionError": "kdcache.errors",
    "Run": "kdcache.runs.run",
    "SourceError": "kdcache.errors",
    "StoreError": "kdcache.errors",
    "WeightsError": "kdcache.errors",
    "WriteError": "kdcache.errors",
    "ablate": "kdcache.report.ablation",
    "copy": "kdcache.store.copying",
    "cost": "kdcache.runs.cost",
    "evaluate": "kdcache.runs.evaluate",
    "extract": "kdcache.extraction.run",
    "fit": "kdcache.runs.fit",
    "predict": "kdcache.runs.online",
    "read_manifest": "kdcache.manifest",
    "show": "kdcache.report.sheet",
    "submit": "kdcache.runs.submit",
    "train": "kdcache.runs.train",
    "write_manifest": "kdcache.manifest",
}
_SUBPACKAGES = ("backbones", "datasets", "exchange", "methods", "motion")

__all__ = [
    "Cache",
    "ClipError",
    "DeviceError",
    "KdcacheError",
    "ManifestError",
    "OptionError",
    "Run",
    "SourceError",
    "StoreError",
    "WeightsError",
    "WriteError",
    "__version__",
    "ablate",
    "backbones",
    "copy",
    "cost",
    "datasets",
    "evaluate",
    "exchange",
    "extract",
    "fit",
    "methods",
    "motion",
    "predict",
    "read_manifest",
    "show",
    "submit",
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
