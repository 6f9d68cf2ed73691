"""How far the torch engine of TV-L1 is from the compiled one: ``python benchmarks/tvl1_torch.py [--write]``.

Runs on the GPU where there is one, else in plain torch on the CPU. The yardstick is how far OpenCV moves when its
input gets a little noise; the target is a mean within 1.5 × of that and a median within 0.01 px.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import common
from kdcache.motion import tvl1_pairs
from tvl1 import distance, own_noise, still_pair


def agreement(name: str) -> dict[str, float]:
    """One still pair: seconds of one solve, and its distance from the compiled engine."""
    first, second = still_pair(name)
    compiled = tvl1_pairs(first[None], second[None], engine="cpu")[0]
    begin = time.perf_counter()
    flow = tvl1_pairs(first[None], second[None], engine="torch")[0]
    seconds = time.perf_counter() - begin
    moved = distance(flow, compiled)
    noise = own_noise(first, second, compiled)[0]
    return {
        "seconds": seconds,
        "mean_px": float(moved.mean()),
        "median_px": float(np.median(moved)),
        "opencv_under_noise_mean_px": noise,
        "mean / noise": float(moved.mean()) / noise,
    }


def measure() -> Iterator[tuple[str, Any]]:
    """All still pairs."""
    yield "device", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, plain torch"
    for name in ("RubberWhale", "army", "basketball"):
        yield name, agreement(name)


if __name__ == "__main__":
    common.main("tvl1_torch", measure, __doc__ or "")
