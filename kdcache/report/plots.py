"""Plots of comparisons as PNG: effects, accuracy over observation ratios and training, gains by class, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.files import atomic
from kdcache.metrics.significance import half_widths

Array = NDArray[Any]


@dataclass(frozen=True)
class EffectBar:
    """One row of a plot of effects: the difference, its interval (NaN: none), and the paper's (None: none)."""

    row: str
    difference: float
    low: float
    high: float
    paper: float | None = None


_WIDTH, _HEIGHT = 6.4, 4.2  # inches of one panel


def effects(path: Path, panels: Mapping[str, Sequence[EffectBar]], title: str) -> None:
    """Differences to a reference row with their intervals, a line a row, a panel for each kind of weights.

    Args:
        path: PNG to write.
        panels: title → the rows, from top to bottom, the same ones in each.
        title: of the whole.
    """
    most = max(map(len, panels.values()))
    figure, all_axes = _panels(len(panels), height=1.8 + 0.35 * most, alike=True)
    paper: list[Any] = []
    for axes, (caption, bars) in zip(all_axes, panels.items(), strict=True):
        for place, bar in enumerate(bars):
            if not np.isnan(bar.low):
                axes.plot([bar.low, bar.high], [place, place], color="tab:blue", lw=2)
            axes.plot(bar.difference, place, "o", color="tab:blue")
        quoted = [(bar.paper, place) for place, bar in enumerate(bars) if bar.paper is not None]
        if quoted:
            paper = axes.plot(*zip(*quoted, strict=True), "D", color="tab:orange", mfc="none", label="the paper's")
        axes.axvline(0, color="0.2", lw=0.8)
        axes.set_yticks(range(len(bars)), [bar.row for bar in bars])
        axes.set(ylim=(most - 0.5, -0.5), xlabel="difference, points", title=caption)
        axes.grid(visible=True, axis="x", color="0.9")
    if paper:
        figure.legend(handles=paper, loc="outside lower center")
    figure.suptitle(title)
    _save(figure, path)


def observed_curves(path: Path, curves: Mapping[str, Array], title: str, *, interval: bool = False) -> None:
    """Accuracy against the observation ratio, one line a row.

    Args:
        path: PNG to write.
        curves: row → accuracies ``[n, N]`` of n units, or of n seeds of one, in per cent, at the ratios 1/N … 1. The
            line is their mean.
        title: of the plot.
        interval: whether the band is the 95 % interval of the mean, or one standard deviation to either side.
    """
    figure, (axes,) = _panels(1)
    for number, (name, values) in enumerate(curves.items()):
        x = 100 * np.arange(1, values.shape[1] + 1) / values.shape[1]
        _line(axes, x, values, name, number, interval)
    axes.set(xlabel="observed, %", ylabel="accuracy, %", title=title)
    axes.legend()
    _save(figure, path)


def training_curves(path: Path, panels: Mapping[str, Mapping[str, Sequence[Array]]], label: str) -> None:
    """A held-out metric over epochs, a panel a split and a line a row: the mean over the seeds that got so far.

    Args:
        path: PNG to write.
        panels: split → row → one array a seed, ``[epochs]``, which may differ in length.
        label: of the vertical axis.
    """
    figure, all_axes = _panels(len(panels))
    for axes, (split, rows) in zip(all_axes, panels.items(), strict=True):
        for number, (name, runs) in enumerate(rows.items()):
            longest = max(len(run) for run in runs)
            values = np.full((len(runs), longest), np.nan)
            for run, line in zip(runs, values, strict=True):
                line[: len(run)] = run
            _line(axes, np.arange(1, longest + 1), values, name, number)
        axes.set(xlabel="epoch", ylabel=f"{label}, %", title=split)
    _legend(figure, all_axes)
    _save(figure, path)


def class_gains(path: Path, gains: Array, classes: Sequence[object], title: str, *, interval: bool = False) -> None:
    """Points gained on each class, sorted: the mean with a bar to either side.

    Args:
        path: PNG to write.
        gains: ``[n, C]`` of n units, or of n seeds of one; NaN for classes without samples, and those that never have
            any are left out.
        classes: name of each class.
        title: of the plot.
        interval: whether the bar is the 95 % interval of the mean, or one standard deviation to either side.
    """
    there = np.asarray(~np.isnan(gains).all(axis=0))
    gains = gains[:, there]
    mean, spread = np.nanmean(gains, axis=0), np.nan_to_num(_spread(gains, interval))
    names = [str(classes[int(i)]) for i in there.nonzero()[0]]
    order = np.argsort(-mean, kind="stable")
    figure, (axes,) = _panels(1, width=max(_WIDTH, 0.22 * len(names)))
    colours = np.where(mean[order] >= 0, "tab:blue", "tab:red").tolist()
    error = spread[order] if spread.any() else None
    axes.bar(np.arange(len(names)), mean[order], yerr=error, color=colours, ecolor="0.4", error_kw={"lw": 0.8})
    axes.set_xticks(np.arange(len(names)), [names[i] for i in order], rotation=90 if len(names) > 12 else 0)
    axes.axhline(0, color="0.2", lw=0.8)
    axes.set(xlabel="class", ylabel="gain, points", title=title)
    _save(figure, path)


def confusions(path: Path, tables: Mapping[str, Array], classes: Sequence[object], title: str) -> None:
    """Confusion matrices side by side.

    Args:
        path: PNG to write.
        tables: caption → counts ``[C, C]``, true class by row; shown as a share of the row.
        classes: name of each class.
        title: of the plot.
    """
    figure, all_axes = _panels(len(tables), width=_HEIGHT)
    for axes, (caption, counts) in zip(all_axes, tables.items(), strict=True):
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        ticks = list(range(0, len(classes), -(-len(classes) // 20)))
        names = [str(classes[i]) for i in ticks]
        axes.set_xticks(ticks, names, rotation=90)
        axes.set_yticks(ticks, names)
        axes.set(xlabel="predicted class", ylabel="true class", title=caption)
    figure.colorbar(image, ax=all_axes, label="% of the class", shrink=0.8)
    figure.suptitle(title)
    _save(figure, path)


def _legend(figure: Any, all_axes: Sequence[Any]) -> None:
    """In the plot; of many lines beside it."""
    handles, names = all_axes[0].get_legend_handles_labels()
    if len(names) <= 6:
        for axes in all_axes:
            axes.legend()
    else:
        figure.legend(handles, names, loc="outside right upper", fontsize="small")


def _panels(count: int, width: float = _WIDTH, height: float = _HEIGHT, alike: bool = False) -> tuple[Any, list[Any]]:
    """A figure that no global state knows, and its axes, ``alike`` in their scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(1, count, sharex=alike, sharey=alike)))


def _line(axes: Any, x: Array, values: Array, name: str, number: int, interval: bool = False) -> None:
    """Mean of ``[n, x]`` with a band; NaN where a run has ended."""
    colour, style = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
    mean = np.nanmean(values, axis=0)
    axes.plot(x, mean, style, color=colour, label=name, marker="o" if len(x) <= 20 else None, markersize=3)
    spread = _spread(values, interval)
    if not np.isnan(spread).all():
        spread = np.nan_to_num(spread)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
    axes.grid(visible=True, color="0.9")


def _spread(values: Array, interval: bool) -> Array:
    """Half the width of the 95 % interval of the mean of ``[n, …]``, or the standard deviation; NaN below two."""
    if interval:
        return half_widths(values)
    several = (~np.isnan(values)).sum(axis=0) > 1
    found = np.full(values.shape[1:], np.nan)
    found[several] = np.nanstd(values[:, several], axis=0, ddof=1)
    return found


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
