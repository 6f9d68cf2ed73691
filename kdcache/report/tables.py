"""Tables of comparisons in Markdown: what each row gains, its numbers, the paper's, and what all of them rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from kdcache.metrics.early import at_ratio, column_title, ratio_metrics
from kdcache.metrics.significance import mean_std
from kdcache.report.costs import UNKNOWN, cost_section
from kdcache.report.effects import effects_section, paper_gains, signed, units_in_words
from kdcache.report.features import features_lines
from kdcache.report.setting import common_options, setting
from kdcache.report.tuning import tuning_section
from kdcache.runs.ablation.conclusion import Conclusion
from kdcache.runs.ablation.replicates import in_words
from kdcache.runs.ablation.results import UNIT, WEIGHTS, steps_of, unit_means, values, weights_of
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.tuning import MIN_STEPS

USUAL_RATIOS = (20, 40, 60, 80, 100)  # observation ratios in the tables of papers, in per cent


def markdown(conclusion: Conclusion) -> str:
    """All tables of a comparison, and what has to be known to read them."""
    c = conclusion
    lines = [f"# {c.comparison.method}" + (f": {c.comparison.caption}" if c.comparison.caption else ""), ""]
    lines += [c.comparison.note, ""] * bool(c.comparison.note)
    if c.options:
        lines += [common_options(c), ""]
    if c.random:
        lines += [f"Features of random weights, which have learned nothing: {', '.join(c.random)}.", ""]
    shown = shown_metrics(c.comparison, list(dict.fromkeys(c.results["metric"])), c.target, c.monitor)
    for weights in weights_of(c.results):
        lines += [f"## {c.split.capitalize()}, {WEIGHTS[weights]}, {in_words(c.replicates)}", ""]
        if len(c.tests):
            lines += [*effects_section(c.tests, c.results, weights, gains_of(c)), ""]
        lines += [f"{over_what(c.results)}:", "", *results_table(c.comparison, c.results, shown, weights, c.split), ""]
    if c.comparison.columns and not any(row.column for row in c.comparison.rows):  # else see ``paper_columns``
        lines += [*paper_section(c.comparison, c.results, shown, c.weights, c.split), ""]
    lines += ["## What the numbers rest on", "", *setting(c), ""]
    for line in features_lines(c):
        lines += [line, ""]
    for name, problem in c.comparison.failed.items():
        lines += [f"**{name} failed** and is not compared: {problem}", ""]
    lines += [steps_line(c.comparison, c.results), ""]
    if len(c.costs):
        lines += [*cost_section(c.costs), ""]
    if c.comparison.of_others:
        others = "; ".join(f"{', '.join(names)} by {method}" for method, names in c.comparison.of_others.items())
        lines += [f"Rows that another method trains: {others}.", ""]
    if c.results["split_column"].nunique() > 1 and len(c.tests):
        lines += [
            "Splits share training clips, so their differences are not independent: intervals over splits are narrower "
            "and p is smaller than they should be.",
            "",
        ]
    if not c.same_examples:
        lines += [
            "Warning: the rows were not trained on the same examples (the cache or the rule that holds clips out has "
            "changed between them): they cannot be compared; train them again in a new folder.",
            "",
        ]
    if c.search.get("retrain"):
        lines += [
            "Settings were chosen on clips held out of the training clips; the runs of these tables trained on all of "
            "them and selected no epoch: the tables show the last one.",
            "",
        ]
    elif c.split == "validation":
        lines += ["The cache has no test clips: the tables show the validation clips, which selected the epochs.", ""]
    elif c.weights == "last":
        which = "Not every run has" if (c.results["weights"] == "best").any() else "The cache has no"
        lines += [f"{which} validation clips, so no epoch was selected: the tables show the last one.", ""]
    if len(c.tuning):
        lines += [*tuning_section(c), ""]
    elif len(c.comparison.runnable) > 1:
        lines += [
            "Not tuned: each row kept its own learning rate and length, which may suit one better than another.",
            "",
        ]
    return "\n".join(lines)


def gains_of(conclusion: Conclusion) -> dict[str, float]:
    """Row → the paper's gain over the row that it is compared with, by the metric of the tests."""
    c = conclusion
    shown = shown_metrics(c.comparison, list(dict.fromkeys(c.results["metric"])), c.target, c.monitor)
    against = dict(zip(c.tests["row"], c.tests["against"], strict=True)) if len(c.tests) else {}
    return paper_gains(c.comparison, shown, against, c.monitor)


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
    comparison: Comparison, results: pd.DataFrame, shown: Mapping[str, str | None], weights: str, split: str
) -> list[str]:
    """For each row mean ± std over units, each the mean over its seeds; over seeds where there is one unit.

    ``epoch`` is the mean over runs; ``steps`` are optimiser steps of the whole training, a range where runs differ.
    """
    columns = {column: metric for column, metric in shown.items() if metric}
    lines = [f"| {' | '.join(['row', 'epoch', 'steps', *columns])} |", "|" + " --- |" * (len(columns) + 3)]
    several = len(results.drop_duplicates(list(UNIT))) > 1
    for row in comparison.rows:
        if row.quoted:
            continue
        if row.failed:
            lines.append(f"| **{row.name}** (failed) | | | {' | '.join(UNKNOWN for _ in columns)} |")
            continue
        here = results[(results["row"] == row.name) & (results["weights"] == weights)]
        epoch = here.drop_duplicates([*UNIT, "seed"])["epoch"].mean()
        of = unit_means if several else values
        cells = [
            f"{epoch:.0f}" if epoch else UNKNOWN,
            _range(steps_of(results, row.name)),
            *(spread(of(results, row.name, weights, split, metric)) for metric in columns.values()),
        ]
        lines.append(f"| **{row.name}** | {' | '.join(cells)} |")
    return lines


def over_what(results: pd.DataFrame) -> str:
    """What means and standard deviations of ``results_table`` are over."""
    if len(results.drop_duplicates(list(UNIT))) > 1:
        seeds = ", seeds averaged first" if results["seed"].nunique() > 1 else ""
        return f"Mean ± std over {units_in_words(results)}{seeds}"
    count = results["seed"].nunique()
    return f"Mean ± std over {count} seeds of one draw" if count > 1 else "One seed of one draw"


def paper_section(
    comparison: Comparison, results: pd.DataFrame, shown: Mapping[str, str | None], weights: str, split: str
) -> list[str]:
    """The paper's numbers, quoted rows included, and what ours are above them, apart from the results."""
    columns = [column for column in shown if column in comparison.columns]
    lines = [
        "## The paper's numbers",
        "",
        "They are of the paper's own data set, features and networks. Ours − paper says something only where yours are "
        f"the same ({split}, {WEIGHTS[weights]}).",
        "",
        f"| {' | '.join(['row', *columns])} |",
        "|" + " --- |" * (len(columns) + 1),
    ]
    for row in comparison.rows:
        if not row.paper:
            continue
        cells = [_number(row.paper.get(column)) for column in columns]
        lines.append(f"| {row.name}{' (quoted, not run)' * row.quoted} | {' | '.join(cells)} |")
        if row.quoted or row.failed:
            continue
        means = {c: unit_means(results, row.name, weights, split, m) for c in columns if (m := shown[c])}
        gaps = [
            signed(mean_std(means[c])[0] - row.paper[c]) if c in row.paper and means.get(c) else "" for c in columns
        ]
        if any(gaps):
            lines.append(f"| ↳ ours − paper | {' | '.join(gaps)} |")
    return lines


def steps_line(comparison: Comparison, results: pd.DataFrame) -> str:
    """What the column ``steps`` holds; a warning where they are few, or rows that were trained differ in it."""
    meaning = "Steps are those of the evaluated network's optimiser; a teacher's are not counted."
    of_row = {row.name: steps_of(results, row.name) for row in comparison.runnable}
    trained = results[results["steps"].notna() & (results["steps"] != 0)]
    if len(trained) and trained["steps"].min() < MIN_STEPS:
        meaning += f" Fewer than {MIN_STEPS} can make a row that fits more slowly look worse than it is."
    unequal = trained.groupby(["split_column", "draw", "seed"])["steps"].nunique().gt(1).any()
    if unequal:
        return (
            f"{meaning} **Warning:** rows took unequal numbers of steps (column steps; of several networks that answer "
            "together their sum), so part of a difference may come from longer training."
        )
    if not all(of_row.values()):
        return f"{meaning} {UNKNOWN}: the run is from before steps were recorded."
    return meaning


def spread(numbers: Sequence[float]) -> str:
    """``54.5 ± 0.4``; the mean alone where there is one number, a dash where there is none."""
    if not numbers:
        return UNKNOWN
    mean, std = mean_std(numbers)
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _range(numbers: Sequence[int]) -> str:
    """``120``, or ``96–120``."""
    if not numbers:
        return UNKNOWN
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
