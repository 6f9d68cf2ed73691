"""Tables of comparisons in Markdown: the numbers of the runs beside the paper's, paired tests, what tuning chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from kdcache.metrics.early import at_ratio, column_title, ratio_metrics
from kdcache.metrics.significance import mean_std
from kdcache.options import shown as shown_value
from kdcache.report.costs import UNKNOWN, cost_section
from kdcache.runs.ablation.conclusion import Conclusion
from kdcache.runs.ablation.replicates import in_words
from kdcache.runs.ablation.results import WEIGHTS, steps_of, values, weights_of
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.trials import ONE_STAGE, STAGES

USUAL_RATIOS = (20, 40, 60, 80, 100)  # observation ratios in the tables of papers, in per cent


def markdown(conclusion: Conclusion) -> str:
    """All tables of a comparison, and what has to be known to read them."""
    c = conclusion
    columns, seeds = ({getattr(r, name) for r in c.replicates} for name in ("split_column", "seed"))
    lines = [f"# {c.comparison.method}" + (f": {c.comparison.caption}" if c.comparison.caption else ""), ""]
    lines += [c.comparison.note, ""] * bool(c.comparison.note)
    if c.options:
        lines += [f"Set for all rows: {', '.join(f'{n}={shown_value(v)}' for n, v in c.options.items())}.", ""]
    if c.random:
        lines += [f"Features of random weights, which have learned nothing: {', '.join(c.random)}.", ""]
    shown = shown_metrics(c.comparison, list(dict.fromkeys(c.results["metric"])), c.target, c.monitor)
    for weights in weights_of(c.results):
        lines += [f"{c.split.capitalize()}, {WEIGHTS[weights]}, {in_words(c.replicates)}", ""]
        lines += [*results_table(c.comparison, c.results, shown, weights, c.split), ""]
        if len(columns) > 1 < len(seeds):
            lines += [f"The same, means over seeds first: mean ± std over {len(columns)} splits", ""]
            lines += [*table_over_splits(c.comparison, c.results, shown, weights, c.split), ""]
        if len(c.tests):
            over = "splits and seeds" if len(columns) > 1 else "seeds"
            lines += [f"{c.monitor} against {c.against}, paired over {over}, {WEIGHTS[weights]}", ""]
            lines += [*tests_table(c.tests, weights), ""]
    for name, problem in c.comparison.failed.items():
        lines += [f"**{name} failed** and is not compared: {problem}", ""]
    lines += [steps_line(c.comparison, c.results), ""]
    if len(c.costs):
        lines += [*cost_section(c.costs), ""]
    if c.comparison.of_others:
        others = "; ".join(f"{', '.join(names)} by {method}" for method, names in c.comparison.of_others.items())
        lines += [f"Rows that another method trains: {others}.", ""]
    if len(columns) > 1 and len(c.tests):
        lines += ["Splits share clips, so their runs are not independent: p is smaller than it should be.", ""]
    if not c.same_examples:
        lines += [
            "Warning: the rows were not trained on the same examples (the cache or the rule that holds clips out has "
            "changed between them): they cannot be compared; train them again in a new folder.",
            "",
        ]
    if c.split == "validation":
        lines += ["The cache has no test clips: the tables show the validation clips, which selected the epochs.", ""]
    elif c.weights == "last":
        which = "Not every run has" if (c.results["weights"] == "best").any() else "The cache has no"
        lines += [f"{which} validation clips, so no epoch was selected: the tables show the last one.", ""]
    if len(c.tuning):
        lines += [*tuning_table(c.tuning, c.monitor), ""]
    elif len(c.comparison.runnable) > 1:
        lines += [
            "Not tuned: each row kept its own learning rate and length, which may suit one better than another.",
            "",
        ]
    return "\n".join(lines)


def shown_metrics(comparison: Comparison, known: Sequence[str], target: str, monitor: str) -> dict[str, str | None]:
    """Columns of the table → the metric in them; None for numbers of the paper that no single run gives.

    They are the paper's columns; where there are none that a run can fill, the accuracies at the usual observation
    ratios (at all, where not every usual one is there) and the metric that selects epochs stand before them.

    Args:
        comparison: whose columns they are. A column named as the target stands for ``monitor``.
        known: the metrics of the runs.
        target: label that is predicted.
        monitor: the metric that selects epochs.
    """
    by_title = {column_title(metric): metric for metric in known} | {target: monitor}
    lower = {metric: metric for metric in known}
    found = {column: by_title.get(column, lower.get(column.lower())) for column in comparison.columns}
    if any(found.values()):
        return found
    ratios = list(ratio_metrics(known))
    usual = [at_ratio(ratio) for ratio in USUAL_RATIOS]
    default = [*(usual if set(usual) <= set(ratios) else ratios), monitor]
    return {column_title(metric): metric for metric in default} | found


def results_table(
    comparison: Comparison,
    results: pd.DataFrame,
    shown: dict[str, str | None],
    weights: str,
    split: str,
    steps: pd.DataFrame | None = None,
) -> list[str]:
    """For each row ours (mean ± std over all runs); where the paper has numbers, these and the difference.

    ``epoch`` is the mean over runs; ``steps`` are optimiser steps of the whole training, a range where runs differ, and
    are those in the results, or in the table ``steps``.
    """
    steps = results if steps is None else steps
    lines = [f"| {' | '.join(['row', 'epoch', 'steps', *shown])} |", "|" + " --- |" * (len(shown) + 3)]
    for row in comparison.rows:
        if row.quoted:
            cells = [_number(row.paper.get(column)) for column in shown]
            lines.append(f"| {row.name} (not run): paper | | | {' | '.join(cells)} |")
            continue
        if row.failed:
            lines.append(f"| **{row.name}** (failed) | | | {' | '.join(UNKNOWN for _ in shown)} |")
            continue
        here = results[(results["row"] == row.name) & (results["weights"] == weights)]
        epoch = here.drop_duplicates(["split_column", "draw", "seed"])["epoch"].mean()
        ours = {c: values(results, row.name, weights, split, m) if m else [] for c, m in shown.items()}
        cells = [
            f"{epoch:.0f}" if epoch else UNKNOWN,
            _range(steps_of(steps, row.name)),
            *(spread(v) for v in ours.values()),
        ]
        lines.append(f"| **{row.name}** | {' | '.join(cells)} |")
        if row.paper:
            cells = [_number(row.paper.get(column)) for column in shown]
            lines.append(f"| ↳ paper | | | {' | '.join(cells)} |")
            gaps = [signed(mean_std(v)[0] - row.paper[c]) if v and c in row.paper else "" for c, v in ours.items()]
            lines.append(f"| ↳ difference | | | {' | '.join(gaps)} |")
    return lines


def table_over_splits(
    comparison: Comparison, results: pd.DataFrame, shown: dict[str, str | None], weights: str, split: str
) -> list[str]:
    """Mean ± std over split columns of each row's mean over seeds."""
    by = ["row", "split_column", "weights", "split", "metric"]
    means = results.groupby(by, sort=False)[["value", "epoch"]].mean().reset_index().assign(draw=0, seed=0)
    ours = replace(comparison, rows=[replace(row, paper={}) for row in comparison.runnable])
    return results_table(ours, means, shown, weights, split, steps=results)


def steps_line(comparison: Comparison, results: pd.DataFrame) -> str:
    """What the column ``steps`` holds; a warning where rows that were trained differ in it."""
    meaning = "Steps are those of the evaluated network's optimiser; a teacher's are not counted."
    of_row = {row.name: steps_of(results, row.name) for row in comparison.runnable}
    trained = results[results["steps"].notna() & (results["steps"] != 0)]
    unequal = trained.groupby(["split_column", "draw", "seed"])["steps"].nunique().gt(1).any()
    if unequal:
        return (
            f"{meaning} **Warning:** rows took unequal numbers of steps (column steps; of several networks that answer "
            "together their sum), so part of a difference may come from longer training."
        )
    if not all(of_row.values()):
        return f"{meaning} {UNKNOWN}: the run is from before steps were recorded."
    return meaning


def tests_table(tests: pd.DataFrame, weights: str) -> list[str]:
    """The paired tests."""
    lines = ["| row | difference | higher in | p (t-test) | p (sign flips) |", "| --- | --- | --- | --- | --- |"]
    for row in tests[tests["weights"] == weights].to_dict("records"):
        gap = signed(row["mean"]) + (f" ± {row['std']:.1f}" if not math.isnan(row["std"]) else "")
        ties = f", equal in {row['ties']}" if row["ties"] else ""
        p_t = "" if math.isnan(row["p_t"]) else f"{row['p_t']:.3f}"
        share = f"{row['wins']} of {row['pairs']}{ties}"
        lines.append(f"| {row['row']} | {gap} | {share} | {p_t} | {row['p_permutation']:.3f} |")
    return lines


def tuning_table(tuned: pd.DataFrame, metric: str) -> list[str]:
    """The settings that were selected for each row; above it a line that says how."""
    count, by = tuned["trial"].nunique(), ["row"]
    if len(tuned[["row", "split_column"]].drop_duplicates()) > tuned["row"].nunique():
        by.append("split_column")
    lines = [f"Selected from {count} trials by {metric} on validation clips" + " of each split" * (len(by) - 1), ""]
    varied = [name for name in (*ONE_STAGE, *STAGES) if name in tuned]
    header = [*by, "trial", *varied, "score", "score of its own settings"]
    lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for names, part in tuned.groupby(by, sort=False):
        if not part["chosen"].any():  # every trial failed
            continue
        best, own = part[part["chosen"]].iloc[0], part[part["trial"] == 0].iloc[0]
        shown = " | ".join("" if pd.isna(best[name]) else str(best[name]) for name in ("trial", *varied))
        lines.append(f"| {' | '.join(map(str, names))} | {shown} | {best['score']:.1f} | {own['score']:.1f} |")
    return lines


def spread(numbers: Sequence[float]) -> str:
    """``54.5 ± 0.4``; the mean alone where there is one number, a dash where there is none."""
    if not numbers:
        return UNKNOWN
    mean, std = mean_std(numbers)
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def signed(value: float) -> str:
    """With its sign, one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _range(numbers: Sequence[int]) -> str:
    """``120``, or ``96–120``."""
    if not numbers:
        return UNKNOWN
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
