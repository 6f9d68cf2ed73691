"""From finished runs to numbers: one long table of all metrics, which of them count, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.engine.checkpoint import load_summary
from kdcache.methods.contract import HELD_OUT
from kdcache.metrics.significance import paired
from kdcache.runs.ablation.fused import fused_metrics
from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.run import Run

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
            if row.fused:  # of several runs, none of whose epochs and steps is that of all
                metrics, steps = fused_metrics(comparison, row, out, replicate), None
            else:
                metrics = run.metrics  # a run of 0.1 knows the steps of its last stage
                steps = metrics.get("steps", stage_summary(run).get("steps"))
            of_run = {"row": row.name, "split_column": run.settings.split_column}
            of_run |= {"draw": replicate.draw or 0, "seed": replicate.seed}
            for weights, key in (("last", "last"), ("best", "best@validation")):
                for split, targets in metrics.get(key, {}).items():
                    known = {**of_run, "weights": weights, "epoch": metrics.get("epochs", {}).get(weights, 0), "steps": steps}
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
    r = results
    here = r[(r["row"] == row) & (r["weights"] == weights) & (r["split"] == split) & (r["metric"] == metric)]
    return here.sort_values(["split_column", "draw", "seed"])["value"].tolist()


def tests(comparison: Comparison, results: pd.DataFrame, against: str, metric: str, split: str) -> pd.DataFrame:
    """Every other row against one (in tables of several stream columns against that of its own column), paired over
    split columns and seeds.

    Returns:
        A line for each row and kind of weights: ``row``, ``weights``, ``metric`` and the fields of
        ``kdcache.metrics.significance.Paired``.
    """
    found = []
    for weights in weights_of(results):
        for row in comparison.compared:
            reference = comparison.reference_of(row, against)
            if reference is None or reference.name == row.name:
                continue
            base = values(results, reference.name, weights, split, metric)
            result = paired(base, values(results, row.name, weights, split, metric))
            found.append({"row": row.name, "weights": weights, "metric": metric, **vars(result)})
    return pd.DataFrame(found)
