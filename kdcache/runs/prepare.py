"""From the configuration of a run to what it trains on: the shards of a cache, or sources on demand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.data.open import StreamPool, open_cache
from kdcache.data.training_data import TrainingData
from kdcache.manifest import read_manifest
from kdcache.methods import method as method_module
from kdcache.runs.config import RunSettings


def prepare(
    settings: RunSettings,
    options: Any,
    before: Mapping[str, Any] | None = None,
    *,
    training: bool = True,
    rows: pd.DataFrame | None = None,
    pool: StreamPool | None = None,
    workers: int | str = "auto",
) -> TrainingData:
    """Open what a run reads.

    Args:
        settings: of the run.
        options: of its method.
        before: what an earlier call resolved; the same is then used again.
        training: off, privileged inputs are left out and their streams are not opened.
        rows: of the manifest, where it has been read already.
        pool: streams of a cache that other runs of this process keep in memory.
        workers: threads that make batches from sources, see ``runtime.decode_threads``.

    Raises:
        OptionError, DeviceError, StoreError, ManifestError: see ``open_cache`` and ``open_sources``.
    """
    inputs = method_module(settings.method).inputs(options)
    common: dict[str, Any] = {
        "split_column": settings.split_column,
        "validation": settings.validation,
        "validation_seed": settings.validation_seed,
        "validation_as": settings.validation_as,
        "memory_fraction": settings.memory_fraction,
        "device": settings.device,
        "precision": settings.precision,
        "seed": settings.seed,
        "before": before,
    }
    if settings.manifest is not None:
        from kdcache.data.ondemand.open import open_sources  # loads OpenCV and torchvision

        if rows is None:
            rows = manifest_rows(settings)
        common |= {"decoder": settings.decoder, "joint_layout": settings.joint_layout, "workers": workers}
        return open_sources(rows, settings.roots, inputs, options, **common)
    assert settings.shards is not None
    return open_cache(
        settings.shards,
        inputs,
        stream=settings.stream,
        recipe=settings.recipe,
        tau_s=settings.tau_s,
        weights=settings.weights,
        training=training,
        pool=pool,
        **common,
    )


def manifest_rows(settings: RunSettings) -> pd.DataFrame:
    """The manifest of a run on its sources; ``ManifestError`` where it has become a bad one."""
    roots = settings.roots
    return read_manifest(str(settings.manifest), roots.folders, allow_absolute=roots.allow_absolute)


def absolute(path: str | Path) -> str:
    """A path as runs store it."""
    return str(Path(path).expanduser().resolve())
