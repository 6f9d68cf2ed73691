"""TV-L1 by OpenCV itself: the reference that the other engines are measured against."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.motion.tv_l1.parallel import each_pair
from kdcache.motion.tv_l1.params import TVL1Params


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

    flow = np.zeros((*first.shape, 2), np.float32) if initial is None else initial.copy()

    def work(pair: int) -> None:
        start = None if initial is None else flow[pair]
        flow[pair] = _solver(params, initial is not None).calc(first[pair], second[pair], start)

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        each_pair(len(first), threads, work)
    finally:
        cv2.setNumThreads(before)
    return flow
