"""The settings that a row's trials take: points of a quasi-random sequence on a grid of values.

A grid has a dimension for the learning rate (five values over two decades, around that of the method's first row), one
for the length (once, twice and four times a base length of at least so many optimiser steps), and one for each knob
that the method declares for the row's objective. Points are those of Sobol's sequence, which covers every dimension
evenly for any number of trials; its first point, the corner of the grid, gives way to the row's own settings. A point
that falls on settings that the row has had is passed over. The first half of a row's trials takes the lengths in turn,
and tells which is best over all rows; the second half is drawn at that one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from kdcache.methods.search import Knob

LR, LENGTH = "lr", "length"
"""Dimensions that all rows of a method have in common."""
HALF_DECADES = (-2, -1, 0, 1, 2)
FACTORS = (1.0, 2.0, 4.0)
MAX_POINTS = 2**10  # of the sequence; a grid is exhausted long before


def exploring(count: int) -> int:
    """Of ``count`` trials those by which the length is chosen: about half, as many at each length. [reconstructed]"""
    return min(count, len(FACTORS) * max(1, round(count / 2 / len(FACTORS))))


@dataclass(frozen=True)
class Rates:
    """The options of learning rate and length that a method has."""

    lr: str
    length: str
    milestones: str | None
    whole: bool = True
    """Whether the length is a number of epochs; off: a factor of every stage's."""

    def name(self, dimension: str) -> str:
        """A dimension as reports call it: the learning rate by the option that it is."""
        return self.lr if dimension == LR else dimension


OF_ONE_STAGE = Rates("lr", "epochs", "milestones")
OF_STAGES = Rates("lr_factor", "length", None, whole=False)


@dataclass
class Dimension:
    """One dimension of a grid, and how far it has been widened."""

    knob: Knob
    values: list[Any] = field(default_factory=list)
    widened: dict[str, int] = field(default_factory=lambda: {"low": 0, "high": 0})

    def __post_init__(self) -> None:
        self.values = list(self.knob.values)

    def edge(self, value: Any) -> str:
        """``low`` or ``high`` where a value is the outermost one on a side where others would make sense, or empty."""
        numbers = [v for v in self.values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or len(numbers) < 2:
            return ""
        if value <= min(numbers):
            return "low" if self.knob.below else ""
        return "high" if value >= max(numbers) and self.knob.above else ""

    def widen(self, side: str, most: int) -> Any:
        """Add the next value on a side and return it; None where it has been widened ``most`` times or ends there."""
        beyond = self.knob.below if side == "low" else self.knob.above
        count = self.widened[side]
        if count >= min(most, len(beyond)):
            return None
        self.widened[side] = count + 1
        self.values.insert(0, beyond[count]) if side == "low" else self.values.append(beyond[count])
        return beyond[count]


def rate_dimension(lr: float) -> Dimension:
    """Five learning rates over two decades around ``lr``, to three digits; two more on each side to widen by."""

    def at(half_decades: int) -> float:
        return float(f"{lr * 10 ** (half_decades / 2):.3g}")

    return Dimension(Knob(LR, tuple(map(at, HALF_DECADES)), (at(-3), at(-4)), (at(3), at(4))))


def length_dimension(shorter: float) -> Dimension:
    """Factors of the base length; below it as far as ``shorter``, the smallest factor that takes enough steps."""
    below = tuple(factor for factor in (0.5, 0.25) if factor >= shorter)
    return Dimension(Knob(LENGTH, FACTORS, below, (8.0, 16.0)))


@dataclass(frozen=True)
class Base:
    """Learning rate and length around which the rows of a method are searched."""

    rates: Rates
    lr: float
    length: float
    """Epochs, or factor."""
    milestones: tuple[int, ...]
    own_length: float
    """To which the milestones belong."""

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The options that the dimensions LR and LENGTH of a point stand for, as far as it has them."""
        found: dict[str, Any] = {}
        if LR in point:
            found[self.rates.lr] = point[LR]
        if LENGTH in point:
            length = self.length * point[LENGTH]
            found[self.rates.length] = max(1, round(length)) if self.rates.whole else float(f"{length:.4g}")
            if self.rates.milestones is not None:
                scale = found[self.rates.length] / self.own_length
                found[self.rates.milestones] = tuple(max(1, round(m * scale)) for m in self.milestones)
        return found


def base_of(
    rates: Rates,
    lr: float,
    length: float,
    milestones: Sequence[int],
    steps: Sequence[tuple[float, int]],
    min_steps: int,
) -> tuple[Base, float]:
    """The base of a method's rows, and the factor of its length below which a row would take too few steps.

    Args:
        rates: the method's options of learning rate and length.
        lr: of its first row.
        length: of its first row, raised where a row would take fewer than ``min_steps`` steps.
        milestones: of its first row.
        steps: of each row, on each split column, its length and the optimiser steps that it takes with that.
        min_steps: in the whole training.
    """
    least = max((min_steps * own / count for own, count in steps if count), default=0.0)
    if rates.whole:
        least = float(np.ceil(least))
    base = Base(rates, lr, max(length, least), tuple(milestones), length)
    return base, least / base.length


class RowGrid:
    """The grid of one row, and which of its points have been taken.

    Args:
        base: of the row's method.
        dimensions: LR and LENGTH, common to all rows of the method (none of a row that does not train), and its knobs.
    """

    def __init__(self, base: Base, dimensions: Sequence[Dimension]) -> None:
        self.base, self.dimensions = base, list(dimensions)
        self._taken: set[str] = set()
        self._next = 1  # point 0 is the corner

    @cached_property
    def _sequence(self) -> NDArray[np.float64]:
        """Points in [0, 1), ``[MAX_POINTS, dimensions]``."""
        size = len(self.dimensions)
        points: NDArray[np.float64] = qmc.Sobol(size, scramble=False).random_base2(MAX_POINTS.bit_length() - 1)
        return points

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a point stands for."""
        knobs = {name: value for name, value in point.items() if name not in (LR, LENGTH)}
        return self.base.settings(point) | knobs

    def reserve(self, settings: Mapping[str, Any]) -> None:
        """Note settings that the row has had."""
        self._taken.add(json.dumps(settings, sort_keys=True))

    def draw(self, count: int, **fixed: Any) -> list[dict[str, Any]]:
        """The next points that differ from all before, dimension → value; fewer where the grid has no more.

        ``fixed`` are values of dimensions in every point.
        """
        found: list[dict[str, Any]] = []
        if not self.dimensions:
            return found
        for _ in range(MAX_POINTS):  # once round the sequence; a widened grid has new points at places passed before
            if len(found) == count:
                break
            at = self._sequence[self._next % MAX_POINTS]
            self._next += 1
            point = {d.knob.option: d.values[int(u * len(d.values))] for d, u in zip(self.dimensions, at, strict=True)}
            point |= fixed
            text = json.dumps(self.settings(point), sort_keys=True)
            if text not in self._taken:
                self._taken.add(text)
                found.append(point)
        return found
