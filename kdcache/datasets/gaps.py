"""Unlabelled anticipation pairs, drawn from the stretches of training videos that carry no annotation."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.datasets.pairs import carried, check_timing, interleave
from kdcache.errors import OptionError

GRID_S = 0.01  # starts are drawn on the grid of the annotations, hundredths of a second

Spans = list[tuple[float, float]]  # sorted, disjoint


def gaps(annotated: Iterable[tuple[float, float]], duration: float) -> Spans:
    """What [0, duration] leaves outside all annotated spans."""
    free: Spans = []
    end = 0.0
    for start, stop in sorted(annotated):
        if start > end:
            free.append((end, min(start, duration)))
        end = max(end, stop)
    if end < duration:
        free.append((end, duration))
    return [(a, b) for a, b in free if b > a]


def possible_starts(free: Spans, window: float, tau: float) -> Spans:
    """Where a pair may start: both [s, s + window) and [s + window + tau, s + 2 window + tau) lie in gaps.

    They need not lie in the same gap: an action in between is in neither clip.
    """
    first = [(a, b - window) for a, b in free if b - window >= a]
    second = [(a - window - tau, b - window - tau) for a, b in first]
    starts: Spans = []
    i = j = 0
    while i < len(first) and j < len(second):
        low, high = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if low <= high:
            starts.append((low, high))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return starts


def unlabelled_pairs(
    videos: pd.DataFrame,
    annotated: Mapping[str, Sequence[tuple[float, float]]],
    count: int,
    tau: float,
    window: float,
    seed: int,
) -> pd.DataFrame:
    """``count`` pairs from gaps, spread over the videos in proportion to the time in which a pair fits.

    (Anticipation paper §3.3: two random segments of 32 frames, τ apart, from unlabelled stretches; "apart" taken from
    the end of the first to the start of the second, as in labelled pairs [reconstructed].) Within a video all starts
    are different. The draw of one video depends on ``seed``, its name and its share alone.

    Args:
        videos: ``name`` (unique), ``source``, ``duration_s``, and columns to carry.
        annotated: name → spans in seconds that no clip may touch.

    Returns:
        Rows without label, as ``action_pairs`` makes them.

    Raises:
        OptionError: the gaps do not hold so many different pairs.
    """
    check_timing(tau, window)
    grids = [
        _grid(possible_starts(gaps(annotated.get(name, ()), duration), window, tau))
        for name, duration in zip(videos["name"], videos["duration_s"], strict=True)
    ]
    sizes = np.array([len(g) for g in grids], dtype=np.int64)
    if count > sizes.sum():
        raise OptionError(f"unlabelled is {count}: the gaps hold only {sizes.sum()} different pairs; ask for fewer.")
    drawn = []
    for name, grid, share in zip(videos["name"], grids, shares(count, sizes), strict=True):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        drawn.append(np.sort(generator.choice(grid, share, replace=False)))
    which = np.repeat(np.arange(len(videos)), [len(d) for d in drawn])
    start = np.concatenate([*drawn, np.empty(0)])
    number = np.concatenate([*(np.arange(len(d)) for d in drawn), np.empty(0, dtype=np.int64)])
    base = carried(videos.iloc[which])
    names = videos["name"].to_numpy(dtype=object)[which]
    stem = [f"{name}-gap{i}@{tau:g}" for name, i in zip(names, number, strict=True)]
    both = {"pair": stem, "tau": repr(float(tau)), "clamped": "0"}
    stop = start + window
    observed = base.assign(start_s=start, stop_s=stop, role="observed", **both)
    action = base.assign(start_s=stop + tau, stop_s=stop + tau + window, role="action", **both)
    return interleave(observed, action)


def shares(count: int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split ``count`` in proportion to ``sizes`` by largest remainders; no share exceeds its size."""
    total = int(sizes.sum())
    if total == 0:
        return np.zeros_like(sizes)
    exact = [divmod(count * int(size), total) for size in sizes]
    given = np.array([quotient for quotient, _ in exact], dtype=np.int64)
    most = np.argsort([-remainder for _, remainder in exact], kind="stable")[: count - int(given.sum())]
    given[most] += 1
    return given


def _grid(starts: Spans) -> NDArray[np.float64]:
    """The points of the grid inside the spans, in seconds."""
    small = 1e-6  # a span whose end is a grid point but for rounding has it
    ticks = [np.arange(np.ceil(a / GRID_S - small), np.floor(b / GRID_S + small) + 1) for a, b in starts]
    return np.concatenate([*ticks, np.empty(0)]) * GRID_S
