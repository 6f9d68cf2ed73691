"""TV-L1 optical flow after OpenCV's DualTVL1OpticalFlow: one algorithm, three engines."""

from __future__ import annotations

from kdcache.motion.tv_l1.api import ENGINES, tvl1, tvl1_pairs
from kdcache.motion.tv_l1.params import TVL1Params, pyramid

__all__ = ["ENGINES", "TVL1Params", "pyramid", "tvl1", "tvl1_pairs"]
