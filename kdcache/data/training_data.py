"""What is ready to train on, wherever it came from, and the digest of its examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kdcache.data.loader import feed, in_order
from kdcache.data.splits import Examples
from kdcache.methods.contract import Batch, BatchSource, Data
from kdcache.recipe import Recipe
from kdcache.store.failures import Failure


@dataclass(frozen=True)
class TrainingData:
    """A cache, or sources, ready for a method."""

    data: Data
    examples: Examples
    resolved: dict[str, Any]
    """What ``auto`` came to, as ``config.toml`` keeps it; a run is only continued where it is the same."""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Of each cached stream that is read."""
    input_recipes: Mapping[str, str] = field(default_factory=dict)
    """Of each input from a cache the digest of the recipes that it reads and of the views that it shows."""
    failures: list[Failure] = field(default_factory=list)
    """Clips that could not be read from their sources and take no part."""


def batches_on(device: torch.device) -> Callable[[BatchSource, int, int], Iterator[Batch]]:
    """``Data.batches`` of a device."""
    return lambda source, size, view: feed(source, in_order(source, size, view), device)


def fingerprint(examples: Examples) -> str:
    """Digest of which examples, clips and labels there are in each split."""
    content = {
        split: [s.names, *(v.tolist() for v in (*s.rows.values(), *s.labels.values()))]
        for split, s in examples.splits.items()
    }
    text = json.dumps([examples.clip_ids, examples.classes, content])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
