"""State dicts drawn by the rule behind the golden outputs, from the published checkpoints' names and shapes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

WEIGHTS = Path(__file__).parent / "data" / "weights"
"""Names and shapes of the published checkpoints' parameters, and golden outputs."""


def golden_state(shapes: Path) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of the JSON file ``shapes``; each entry is drawn from its name alone."""
    return {name: _entry(name, tuple(shape)) for name, shape in json.loads(shapes.read_text()).items()}


def _entry(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = rng.normal(0, 0.1, shape)
    else:
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return torch.from_numpy(values.astype(np.float32))
