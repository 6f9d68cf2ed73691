"""The median of a window as a selection network of minima and maxima, shared by all engines.

Columns that are each sorted once serve all windows along a row. Sorting the rows of such a 5 × 5 window then
leaves 13 values that can be the median, in known partial order; 16 comparators find it among them. The
functions call ``order(a, b) -> (smaller, larger)``, which ``bind`` supplies for each engine. They carry no
annotations because Triton would take those for values.
"""

# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def order(a, b):
    """Both values, the smaller one first; this one is for plain numbers."""
    return min(a, b), max(a, b)


def sort3(values):
    """Three values in ascending order, in 3 comparators."""
    a, b, c = values
    a, b = order(a, b)
    b, c = order(b, c)
    a, b = order(a, b)
    return a, b, c


def sort5(values):
    """Five values in ascending order, in 9 comparators."""
    a, b, c, d, e = values
    a, b = order(a, b)
    d, e = order(d, e)
    c, e = order(c, e)
    c, d = order(c, d)
    a, d = order(a, d)
    b, e = order(b, e)
    a, c = order(a, c)
    b, d = order(b, d)
    b, c = order(b, c)
    return a, b, c, d, e


def median9(lowest, middle, highest):
    """Median of a 3 × 3 window from its three sorted columns; each argument has one value a column."""
    low = sort3(lowest)[2]
    centre = sort3(middle)[1]
    high = sort3(highest)[0]
    return sort3((low, centre, high))[1]


def median25(first, second, third, fourth, fifth):
    """Median of a 5 × 5 window from its five sorted columns.

    ``first`` has the smallest value of each column, ``fifth`` the largest. Unused results of the sorts cost
    nothing once compiled.
    """
    _, _, _, r14, r15 = sort5(first)
    _, _, r23, r24, r25 = sort5(second)
    _, r32, r33, r34, _ = sort5(third)
    r41, r42, r43, _, _ = sort5(fourth)
    r51, r52, _, _, _ = sort5(fifth)
    r41, r14 = order(r41, r14)
    r34, r42 = order(r34, r42)
    r43, r24 = order(r43, r24)
    r43, r32 = order(r43, r32)
    r52, r32 = order(r52, r32)
    r51, r52 = order(r51, r52)
    r51, r14 = order(r51, r14)
    r14, r23 = order(r14, r23)
    r25, r34 = order(r25, r34)
    r23, r33 = order(r23, r33)
    r23, r25 = order(r23, r25)
    r15, r52 = order(r15, r52)
    r25, r52 = order(r25, r52)
    r33, r25 = order(r33, r25)
    r33, r15 = order(r33, r15)
    return order(r25, r15)[0]


def bind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The same code with other global ``names``: how an engine supplies its own ``order`` and sorts."""
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)
