"""TV-L1 by OpenCV itself: the reference that the other engines are measured against."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.motion.tvl1.params import TVL1Params


def _solver(params: TVL1Params, warm: bool) -> Any:
    """A new solver for each pair: OpenCV lowers ``nscales`` of one that has met a small frame, for good."""
    if not hasattr(cv2, "optflow"):
        raise OptionError(
            "This OpenCV has no optflow module: uninstall opencv-python and install opencv-contrib-python-headless."
        )
    optflow: Any = cv2.optflow
    return optflow.DualTVL1OpticalFlow_create(
        tau=params.tau,
        lambda_=params.lambda_,
        theta=params.theta,
        nscales=params.nscales,
        warps=params.warps,
        epsilon=params.epsilon,
        innnerIterations=params.inner_iterations,
        outerIterations=params.outer_iterations,
        scaleStep=params.scale_step,
        gamma=params.gamma,
        medianFiltering=params.median_filtering,
        useInitialFlow=warm,
    )


def solve_pairs_opencv(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    initial: NDArray[np.float32] | None,
    params: TVL1Params,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Flow float32 [N, H, W, 2] of uint8 [N, H, W] pairs, ``threads`` pairs at a time, each in one thread."""

    def solve(pair: int) -> NDArray[np.float32]:
        start = None if initial is None else initial[pair].copy()
        flow: NDArray[np.float32] = _solver(params, initial is not None).calc(
            first[pair], second[pair], start
        )
        return flow

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            return np.stack(list(pool.map(solve, range(len(first)))))
    finally:
        cv2.setNumThreads(before)
