"""From finished runs to numbers: one long table, the paper's table beside ours, paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.engine.checkpoint import load_summary
from kdcache.methods.contract import HELD_OUT
from kdcache.metrics.significance import mean_std, paired
from kdcache.runs.ablation.replicates import Repeat, run_folder
from kdcache.runs.ablation.rows import Plan
from kdcache.runs.run import Run

WEIGHTS = {"best": "best on validation", "last": "last epoch"}
SHOWN = (20, 40, 60, 80, 100)  # observed percentages in the paper's tables


def summary(run: Run) -> dict[str, Any]:
    """Of the run's last stage, whose network answers: ``select``, the metric that chose its epoch, ``rows`` …"""
    found = load_summary(run.path / list(run.metrics["stages"])[-1])
    assert found is not None
    return found


def collect(plan: Plan, out: Path, repeats: Sequence[Repeat]) -> pd.DataFrame:
    """All metrics of all runs.

    Columns: ``row``, ``split_column``, ``seed``, ``weights``, ``epoch``, ``split``, ``metric``, ``value``.
    ``split_column`` is the manifest column by which the run split its clips, ``split`` the part of them (validation,
    test) on which the value was measured. ``weights`` is ``best`` (of the epoch that was best on validation clips) or
    ``last``. Where a cache has no validation clips, there is no best: an epoch chosen on test clips would be no result.
    """
    rows: list[dict[str, Any]] = []
    for row in plan.runnable:
        for repeat in repeats:
            run = Run(run_folder(out, row.slug, repeat))
            metrics, of_run = run.metrics, {"row": row.name, "split_column": run.settings.split, "seed": repeat.seed}
            for weights, key in (("last", "last"), ("best", "best@validation")):
                for split, targets in metrics.get(key, {}).items():
                    known = {**of_run, "weights": weights, "epoch": metrics["epochs"][weights]}
                    values = targets[run.target]
                    rows += [{**known, "split": split, "metric": m, "value": v} for m, v in values.items()]
    return pd.DataFrame(rows)


def judged_on(results: pd.DataFrame) -> tuple[str, str]:
    """The split and the weights that count: test clips, at the epoch that was best on validation clips."""
    split = next(s for s in reversed(HELD_OUT) if (results["split"] == s).any())
    return split, "best" if (results["weights"] == "best").any() else "last"


def columns(plan: Plan, results: pd.DataFrame, target: str) -> dict[str, str | None]:
    """Columns of the table → our metric; None for numbers of the paper that no single run gives."""
    known = list(dict.fromkeys(results["metric"]))
    ours = {column: _metric(column, known, target) for column in plan.columns}
    if any(ours.values()):
        return ours
    levels = [m for m in known if m.startswith("acc")]
    usual = [f"acc{p}" for p in SHOWN]
    default = (usual if set(usual) <= set(levels) else levels) + [m for m in ("auc",) if m in known]
    return {m.removeprefix("acc").replace("auc", "AUC"): m for m in default or ["top1"]} | ours


def _metric(column: str, known: Sequence[str], target: str) -> str | None:
    """The metric that a paper's column stands for: ``40`` is acc40, ``AUC`` auc, the target's name top1."""
    name = f"acc{column}" if column.isdecimal() else "top1" if column == target else column.lower()
    return name if name in known else None


def values(results: pd.DataFrame, row: str, weights: str, split: str, metric: str) -> list[float]:
    """A row's numbers in the order of splits and seeds."""
    r = results
    here = r[(r["row"] == row) & (r["weights"] == weights) & (r["split"] == split) & (r["metric"] == metric)]
    return here.sort_values(["split_column", "seed"])["value"].tolist()


def table_over_splits(
    plan: Plan, results: pd.DataFrame, shown: dict[str, str | None], weights: str, split: str
) -> list[str]:
    """Markdown: mean ± std over splits of each row's mean over seeds."""
    by = ["row", "split_column", "weights", "split", "metric"]
    means = results.groupby(by, sort=False)[["value", "epoch"]].mean().reset_index().assign(seed=0)
    ours = replace(plan, rows=[replace(row, paper={}) for row in plan.runnable])
    return table(ours, means, shown, weights, split)


def table(plan: Plan, results: pd.DataFrame, shown: dict[str, str | None], weights: str, split: str) -> list[str]:
    """Markdown: for each row ours (mean ± std over all runs); where the paper has numbers, these and the difference."""
    lines = [f"| {' | '.join(['row', 'epoch', *shown])} |", "|" + " --- |" * (len(shown) + 2)]
    for row in plan.rows:
        if row.quoted:
            cells = [_number(row.paper.get(column)) for column in shown]
            lines.append(f"| {row.name} (not run): paper | | {' | '.join(cells)} |")
            continue
        here = results[(results["row"] == row.name) & (results["weights"] == weights)]
        epochs = here.drop_duplicates(["split_column", "seed"])["epoch"]
        ours = {c: values(results, row.name, weights, split, m) if m else [] for c, m in shown.items()}
        lines.append(f"| **{row.name}** | {epochs.mean():.0f} | {' | '.join(spread(v) for v in ours.values())} |")
        if row.paper:
            cells = [_number(row.paper.get(column)) for column in shown]
            lines.append(f"| ↳ paper | | {' | '.join(cells)} |")
            gaps = [signed(mean_std(v)[0] - row.paper[c]) if v and c in row.paper else "" for c, v in ours.items()]
            lines.append(f"| ↳ difference | | {' | '.join(gaps)} |")
    return lines


def tests(plan: Plan, results: pd.DataFrame, against: str, metric: str, split: str) -> pd.DataFrame:
    """Every other row against one, paired over splits and seeds: a row for each and for each kind of weights."""
    found = []
    for weights in [w for w in WEIGHTS if (results["weights"] == w).any()]:
        base = values(results, against, weights, split, metric)
        for row in [r for r in plan.runnable if r.name != against]:
            result = paired(base, values(results, row.name, weights, split, metric))
            found.append({"row": row.name, "weights": weights, "metric": metric, **vars(result)})
    return pd.DataFrame(found)


def tests_table(found: pd.DataFrame, weights: str) -> list[str]:
    """Markdown of the paired tests."""
    lines = ["| row | difference | higher in | p (t-test) | p (sign flips) |", "| --- | --- | --- | --- | --- |"]
    for row in found[found["weights"] == weights].to_dict("records"):
        gap = signed(row["mean"]) + (f" ± {row['std']:.1f}" if not math.isnan(row["std"]) else "")
        ties = f", equal in {row['ties']}" if row["ties"] else ""
        p_t = "" if math.isnan(row["p_t"]) else f"{row['p_t']:.3f}"
        share = f"{row['wins']} of {row['pairs']}{ties}"
        lines.append(f"| {row['row']} | {gap} | {share} | {p_t} | {row['p_permutation']:.3f} |")
    return lines


def spread(numbers: Sequence[float]) -> str:
    """``54.5 ± 0.4``; the mean alone where there is one number, a dash where there is none."""
    if not numbers:
        return "–"
    mean, std = mean_std(numbers)
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def signed(value: float) -> str:
    """With its sign, one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
