"""The torch engine of TV-L1: speed, and distance from the compiled one: ``python benchmarks/tvl1_torch.py [--write]``.

Runs on the GPU where there is one; without one the distance is that of plain torch, and the speed is not measured.
The yardstick of the distance is how far OpenCV moves when its input gets a little noise; the target is a mean within
1.5 × of that and a median within 0.02 px. Speeds are from arrays to arrays, after kernels were compiled and launches
captured. Needs the shared data (see tvl1.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

import common
from kdcache.motion import tvl1_pairs
from kdcache.motion.tv_l1 import TVL1Params, pyramid
from tvl1 import Flow, Image, distance, opencv, own_noise, processor_seconds, still_pair, video_pairs

BATCHES = (1, 8, 32, 64, 128, 256, 512)  # pairs of a call
BYTES = 60 / 4  # that an iteration moves a pixel: of four, 9 numbers are read and 6 written


def agreement(name: str) -> dict[str, float]:
    """One still pair: seconds of one solve, and its distance from the compiled engine."""
    first, second = still_pair(name)
    compiled = tvl1_pairs(first[None], second[None], engine="cpu")[0]
    flows: dict[str, Flow] = {}
    solve = {"torch": lambda: flows.update(torch=tvl1_pairs(first[None], second[None], engine="torch")[0])}
    seconds = common.compare(solve, repeat=1, warmup=2 * torch.cuda.is_available())["torch"]
    moved = distance(flows["torch"], compiled)
    noise = own_noise(first, second, compiled)[0]
    return {
        "seconds": seconds,
        "mean_px": float(moved.mean()),
        "median_px": float(np.median(moved)),
        "opencv_under_noise_mean_px": noise,
        "mean / noise": float(moved.mean()) / noise,
    }


def bandwidth() -> float:
    """Bytes a second that the GPU reads and writes, of a block that is multiplied in place."""
    block = torch.empty(1 << 28, device="cuda")

    def multiply() -> None:
        for _ in range(20):
            block.mul_(1.0)
        torch.cuda.synchronize()

    return 20 * 2 * block.nbytes / common.compare({"multiply": multiply})["multiply"]


def traffic(first: Image, second: Image) -> float:
    """Bytes that the iterations of a pair of [N, H, W] move, in the mean, by how many the compiled engine takes."""
    from kdcache.motion.tv_l1.cpu import solve_pairs

    _, counts = solve_pairs(first, second, None, TVL1Params())
    areas = [height * width for height, width in pyramid(first.shape[1], first.shape[2], TVL1Params())]
    return float((counts.sum(2) @ np.array(areas)).mean()) * BYTES


def speed() -> dict[str, Any] | str:
    """Pairs a second of pairs of videos at 340 × 256 by how many are given at once, against one core of OpenCV's and
    against what the memory's bandwidth allows, borders of tiles and the median filter not counted."""
    if not torch.cuda.is_available():
        return "not run: no CUDA device"
    pairs = video_pairs()
    first, second = (np.stack([pair[k] for pair in pairs]) for k in (1, 2))
    slow = processor_seconds({str(k): partial(opencv, first[k], second[k]) for k in range(0, len(first), 5)}, 1)
    opencv_s = sum(slow.values()) / len(slow)
    bound = bandwidth() / traffic(first, second)
    found = {"OpenCV, one core": 1 / opencv_s, "bound by bandwidth": bound}
    for count in BATCHES:
        some = [np.resize(frames, (count, *frames.shape[1:])) for frames in (first, second)]
        seconds = common.compare({"torch": partial(tvl1_pairs, some[0], some[1], "torch")}, repeat=3, warmup=2)["torch"]
        found[f"{count} at once"] = count / seconds
    best = max(found[f"{count} at once"] for count in BATCHES)
    return {"pairs a second": found, "times one core": best * opencv_s, "share of the bound": best / bound}


def measure() -> Iterator[tuple[str, Any]]:
    """Speed, and all still pairs."""
    yield "device", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, plain torch"
    yield "speed", speed()
    for name in ("RubberWhale", "army", "basketball"):
        yield name, agreement(name)


if __name__ == "__main__":
    common.main("tvl1_torch", measure, __doc__ or "")
