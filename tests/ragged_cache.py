"""Tiny caches of sequences that differ in length, as importers write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pairs_cache
import pandas as pd
import streams_cache

STREAM, WIDTH = "features/x", 6


def recipe(stream: str = STREAM, dtype: str = "float32", axes: str = "TD") -> dict[str, Any]:
    known = {"stream": stream, "version": 1, "layout": "ragged", "dtype": dtype, "axes": axes}
    return known | {"imported": {"format": "npy"}}


def sequences(count: int, classes: Sequence[int], width: int = WIDTH, seed: int = 0) -> list[Any]:
    """Sequences of 1 to 9 vectors ``[T, width]`` in which the class shows at every step."""
    rng = np.random.default_rng(seed)
    prototypes = 2 * rng.normal(size=(max(classes) + 1, width))
    lengths = rng.integers(1, 10, count)
    return [
        (rng.normal(size=(length, width)) + prototypes[c]).astype(np.float32)
        for length, c in zip(lengths.tolist(), classes, strict=True)
    ]


def clips(folder: Path, *counts: int, **more: Any) -> tuple[Path, pd.DataFrame, list[Any]]:
    """Clips of two classes; ``counts`` are those of ``streams_cache.rows``."""
    table = streams_cache.rows(*counts)
    made = sequences(len(table), [int(label) // 7 for label in table["label"]], **more)
    return streams_cache.write(folder, table, [(recipe(), made)]), table, made


def pairs(folder: Path, labelled: int = 24, unlabelled: int = 0) -> tuple[Path, pd.DataFrame, list[Any]]:
    """Pairs of clips of three classes."""
    table = pairs_cache.rows(labelled, unlabelled)
    made = sequences(len(table), [int(pair[1:]) % pairs_cache.CLASSES for pair in table["pair"]])
    return streams_cache.write(folder, table, [(recipe(), made)]), table, made
