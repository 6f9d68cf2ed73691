"""From finished runs to numbers: one long table of all metrics, which of them count, effects over units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.engine.checkpoint import load_summary
from kdcache.methods.contract import HELD_OUT
from kdcache.metrics.significance import compare
from kdcache.runs.ablation.fused import KEYS, fused_metrics
from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.run import Run

UNIT = ("split_column", "draw")
"""What seeds are repeated within."""

WEIGHTS = {"best": "best on validation", "last": "last epoch"}


def stage_summary(run: Run) -> dict[str, Any]:
    """The summary of the run's last stage, whose network is evaluated: ``rows``, one an epoch, ``steps`` …"""
    found = load_summary(run.path / list(run.metrics["stages"])[-1])
    assert found is not None
    return found


def monitor_of(run: Run) -> str:
    """The metric that selects a run's best epoch."""
    summary = stage_summary(run)
    return str(summary.get("monitor", summary.get("select")))


def collect(comparison: Comparison, out: Path, replicates: Sequence[Replicate]) -> pd.DataFrame:
    """All metrics of all runs, in per cent.

    ``weights`` is ``best`` (of the epoch that was best on validation clips) or ``last``; a cache without validation
    clips has no best, for an epoch chosen on test clips would be no result.

    Returns:
        ``row``, ``split_column`` (the manifest column by which the run split its clips), ``draw``, ``seed``,
        ``weights``, ``epoch`` of these, ``steps`` (optimiser steps that the evaluated network took in its whole
        training; NA in runs that do not say), ``split`` (validation or test: the clips that were scored), ``metric``,
        ``value``.
    """
    rows: list[dict[str, Any]] = []
    for row in comparison.compared:
        for replicate in replicates:
            run = Run(run_folder(out, comparison.row(row.fused[0]).slug if row.fused else row.slug, replicate))
            if row.fused:  # no epoch and no number of steps is that of all parts
                metrics, steps = fused_metrics(comparison, row, out, replicate), None
            else:
                metrics = run.metrics  # a run of 0.1 knows the steps of its last stage
                steps = metrics.get("steps", stage_summary(run).get("steps"))
            of_run: dict[str, Any] = {"row": row.name, "split_column": run.settings.split_column}
            of_run |= {"draw": replicate.draw or 0, "seed": replicate.seed}
            for weights, key in KEYS.items():
                for split, targets in metrics.get(key, {}).items():
                    epoch = metrics.get("epochs", {}).get(weights, 0)
                    known = {**of_run, "weights": weights, "epoch": epoch, "steps": steps}
                    values = targets[run.target]
                    rows += [{**known, "split": split, "metric": m, "value": v} for m, v in values.items()]
    return pd.DataFrame(rows).astype({"steps": "Int64"})


def reported_on(results: pd.DataFrame) -> tuple[str, str]:
    """The split and the weights that count: test clips, at the epoch that was best on validation clips."""
    split = next(s for s in reversed(HELD_OUT) if (results["split"] == s).any())
    return split, weights_of(results)[0]


def weights_of(results: pd.DataFrame) -> list[str]:
    """The kinds of weights that every run has, those that count first; without validation clips a run has no best."""
    runs = ["row", "split_column", "draw", "seed"]
    having = {weights: len(part.drop_duplicates(runs)) for weights, part in results.groupby("weights")}
    return [weights for weights in WEIGHTS if having.get(weights) == len(results.drop_duplicates(runs))]


def steps_of(results: pd.DataFrame, row: str) -> list[int]:
    """Optimiser steps of a row's runs, each number once, ascending; empty where runs do not say."""
    return sorted(int(s) for s in results[results["row"] == row]["steps"].dropna().unique())


def values(results: pd.DataFrame, row: str, weights: str, split: str, metric: str) -> list[float]:
    """A row's numbers in the order of split columns, draws and seeds."""
    return _numbers(results, row, weights, split, metric)["value"].tolist()


def unit_means(results: pd.DataFrame, row: str, weights: str, split: str, metric: str) -> list[float]:
    """A row's mean over seeds in each unit, a pair of split column and draw, in their order."""
    return _numbers(results, row, weights, split, metric).groupby(list(UNIT), sort=False)["value"].mean().tolist()


def differences(
    results: pd.DataFrame, row: str, against: str, weights: str, split: str, metric: str, unit: Sequence[str] = UNIT
) -> list[list[float]]:
    """Row minus reference for each pair of runs of one unit and seed, one list a unit.

    Where ``unit`` leaves the split column or the draw out, its lists hold means over seeds, one for each.
    """
    mine, others = (_numbers(results, name, weights, split, metric) for name in (row, against))
    paired = others.assign(value=mine["value"].to_numpy() - others["value"].to_numpy())
    if len(unit) < len(UNIT):
        paired = paired.groupby(list(UNIT), sort=False)["value"].mean().reset_index()
    return [part.tolist() for _, part in paired.groupby(list(unit), sort=False)["value"]]


def tests(comparison: Comparison, results: pd.DataFrame, against: str, metric: str, split: str) -> pd.DataFrame:
    """Every other row against one, paired within units (split column, draw) and seeds.

    In tables of several stream columns a row is compared with the one of its own column.
    Intervals of one kind of weights hold at once for all rows. They take units for independent, though those of one
    split column, and of one draw, have clips in common. Where there are several of both, ``low_draws`` and
    ``high_draws`` are the interval over draws alone, of each draw's mean over split columns [reconstructed].

    Returns:
        A line for each row and kind of weights: ``row``, ``against``, ``weights``, ``metric``, the fields of
        ``kdcache.metrics.significance.Effect``, ``low_draws``, ``high_draws``.
    """
    bases = [(row, comparison.reference_of(row, against)) for row in comparison.compared]
    pairs = [(row.name, base.name) for row, base in bases if base is not None and base.name != row.name]
    crossed = all(results[name].nunique() > 1 for name in UNIT)
    found = []
    for weights in weights_of(results):
        for row, base in pairs:
            of = (results, row, base, weights, split, metric)
            effect = compare(differences(*of), len(pairs))
            over_draws = compare(differences(*of, ["draw"]), len(pairs)) if crossed else None
            ends = {f"{end}_draws": getattr(over_draws, end, math.nan) for end in ("low", "high")}
            found.append({"row": row, "against": base, "weights": weights, "metric": metric, **vars(effect), **ends})
    return pd.DataFrame(found)


def _numbers(results: pd.DataFrame, row: str, weights: str, split: str, metric: str) -> pd.DataFrame:
    """A row's lines of one metric in the order of split columns, draws and seeds."""
    r = results
    here = r[(r["row"] == row) & (r["weights"] == weights) & (r["split"] == split) & (r["metric"] == metric)]
    return here.sort_values([*UNIT, "seed"]).reset_index(drop=True)
