"""The parameters of TV-L1 optical flow, and the pyramid that they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from kdcache.errors import OptionError

SMALLEST = 3  # pixels a side: below it a central difference has nothing to stand on
COARSEST = 16  # pixels a side: OpenCV starts no pyramid level smaller than this


@dataclass(frozen=True)
class TVL1Params:
    """OpenCV's ``DualTVL1OpticalFlow`` parameters under Python names, with OpenCV's defaults.

    tau: time step of the dual update. lambda_: weight of the data term. theta: coupling of data and
    smoothness. nscales: pyramid levels at most (none below 16 pixels a side). warps: times a level that the
    second frame is warped. epsilon: stop a warp when the flow's mean squared change in one iteration is
    below ``epsilon ** 2``. inner_iterations, outer_iterations: iterations between two median filters, and
    how many such rounds at most. scale_step: size of a pyramid level relative to the one before.
    gamma: weight of the illumination field (engine ``opencv`` alone takes other than 0).
    median_filtering: side of the median filter on the flow, 3 or 5; 0 or 1 for none.

    Source: Zach, Pock and Bischof 2007; Sánchez, Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow
    Estimation", IPOL 2013; OpenCV's ``optflow/src/tvl1flow.cpp``. Raises OptionError for values out of range.
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    nscales: int = 5
    warps: int = 5
    epsilon: float = 0.01
    inner_iterations: int = 30
    outer_iterations: int = 10
    scale_step: float = 0.8
    gamma: float = 0.0
    median_filtering: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise OptionError(f"TV-L1 {field.name} is {value}: give a finite number.")
            if field.type == "int" and value != int(value):
                raise OptionError(f"TV-L1 {field.name} is {value}: give a whole number.")
        for name in ("tau", "lambda_", "theta"):
            if getattr(self, name) <= 0:
                raise OptionError(f"TV-L1 {name} is {getattr(self, name)}: give a number above 0.")
        for name in ("nscales", "warps", "inner_iterations", "outer_iterations"):
            if getattr(self, name) < 1:
                raise OptionError(f"TV-L1 {name} is {getattr(self, name)}: give at least 1.")
        if self.epsilon < 0:
            raise OptionError(f"TV-L1 epsilon is {self.epsilon}: give 0 or more.")
        if not 0 < self.scale_step < 1:
            raise OptionError(f"TV-L1 scale_step is {self.scale_step}: give a number between 0 and 1.")
        if self.median_filtering not in (0, 1, 3, 5):
            raise OptionError(f"TV-L1 median_filtering is {self.median_filtering}: give 0 (off), 3 or 5.")


def pyramid(height: int, width: int, params: TVL1Params) -> list[tuple[int, int]]:
    """Sizes (height, width) of the pyramid's levels, finest first, as OpenCV rounds and limits them."""
    sizes = [(height, width)]
    while len(sizes) < params.nscales:
        size = (round(sizes[-1][0] * params.scale_step), round(sizes[-1][1] * params.scale_step))
        if min(size) < COARSEST:
            break
        sizes.append(size)
    return sizes
