"""Columns of numbers in a manifest: seconds, class numbers, frame rates; a wrong cell becomes a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.frame_rate import is_rate
from kdcache.manifest_forms import Problem

TIMES = ("start_s", "stop_s")  # float64, NaN = the source's start or end
INTEGERS = ("label", "verb", "noun")  # Int64, <NA> = unlabelled

MOST_SECONDS = 1e9  # 31 years; a later time is no time of a video
NO_RATE = ("", "nan")  # cells of ``fps`` that say none
NUMBERS = (*TIMES, *INTEGERS)

_DIGITS = re.compile(r"[0-9]{1,18}")


def number_column(column: str, texts: Sequence[str], numbers: Sequence[int]) -> tuple[Any, list[Problem]]:
    """A column of ``NUMBERS`` as float64 or Int64, missing where a cell is empty, and what is wrong with its cells."""
    values = times(texts) if column in TIMES else integers(texts)
    if values is not None:
        return values, []
    if column in TIMES:
        return convert(column, texts, numbers, _seconds, math.nan)
    return convert(column, texts, numbers, _integer, None)


def check_spans(starts: Sequence[float], stops: Sequence[float], numbers: Sequence[int]) -> list[Problem]:
    """Spans that are empty, or run backwards."""
    start, stop = np.asarray(starts, float), np.asarray(stops, float)
    wrong = np.flatnonzero((stop <= start) | ((stop == 0) & np.isnan(start))).tolist()
    before = ["the source's start" if np.isnan(start[i]) else f"start_s {float(start[i])!r}" for i in wrong]
    return [
        (numbers[i], f"stop_s {float(stop[i])!r} is not after {what}") for i, what in zip(wrong, before, strict=True)
    ]


def times(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """A column of seconds, NaN where a cell is empty; ``None`` where one of them is wrong."""
    try:
        values = np.array([float(text) if text else math.nan for text in texts], float)
    except ValueError:
        return None
    every, given = "".join(texts), values[np.isfinite(values)]
    if not every.isascii() or "_" in every or len(given) != len(texts) - texts.count(""):
        return None
    return values if ((given >= 0) & (given <= MOST_SECONDS)).all() else None


def integers(texts: Sequence[str]) -> pd.arrays.IntegerArray | None:
    """A column of whole numbers, ``<NA>`` where a cell is empty; ``None`` where one of them is wrong."""
    distinct = set(texts)
    if not all(map(_DIGITS.fullmatch, distinct - {""})):
        return None
    at = {text: int(text or 0) for text in distinct}
    values = np.fromiter(map(at.__getitem__, texts), np.int64, len(texts))
    empty = np.fromiter((not text for text in texts), bool, len(texts))
    return pd.arrays.IntegerArray(values, empty)


def convert(
    column: str, texts: Sequence[str], numbers: Sequence[int], read: Callable[[str], Any], missing: Any
) -> tuple[list[Any], list[Problem]]:
    """Read a column of numbers; bad cells become ``missing`` and a problem."""
    values: list[Any] = []
    problems: list[Problem] = []
    for number, text in zip(numbers, texts, strict=False):
        value = missing
        if text:
            try:
                value = read(text)
            except ValueError as error:
                problems.append((number, f"{column} {text!r} {error}"))
        values.append(value)
    return values, problems


def rate(text: str) -> float:
    """A frame rate, NaN where the cell says none; ``ValueError`` says why it is no rate."""
    value = _number(text)
    if text in NO_RATE:
        return math.nan
    if value is None or not is_rate(value):
        raise ValueError("is not a frame rate; write frames per second, like 25 or 29.97")
    return value


def _number(text: str) -> float | None:
    """A number in ASCII digits; ``float`` reads those of all scripts, and 1_0."""
    if not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _seconds(text: str) -> float:
    value = _number(text)
    if value is None:
        raise ValueError("is not a number of seconds; write it like 12.5")
    if not math.isfinite(value):
        raise ValueError("is not a finite number; leave it empty for the source's start or end")
    if value > MOST_SECONDS:
        raise ValueError(f"is beyond {MOST_SECONDS:.0e} s; write seconds, or leave it empty for the source's end")
    if value < 0:
        raise ValueError("is negative; times count from the start of the source")
    return value


def _integer(text: str) -> int:
    if not _DIGITS.fullmatch(text):
        negative = text.startswith("-") and _DIGITS.fullmatch(text[1:])
        raise ValueError(
            "is negative; leave it empty for an unlabelled clip"
            if negative
            else "is not a whole number; classes are 0, 1, 2, …"
        )
    return int(text)
