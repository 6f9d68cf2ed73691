"""The same number of trials for every row: learning rate and length, chosen on validation clips alone.

A comparison at one fixed learning rate favours whichever row that rate happens to suit. With ``tune=N`` every row gets
the same N trials: the first with its own settings, the others with settings that are the same for all rows of a method
(``trials``).

Trials are trained with seeds that no final run has, and scored by the metric that selects epochs, at the best epoch on
the validation clips. Nothing here reads a number of other clips: without a split named ``validation`` nothing is tuned.
Where a protocol has several split columns, each row is tuned on each of them by itself: what is a test clip in one may
be a validation clip in another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.log import logger, quiet
from kdcache.methods.contract import VALIDATION
from kdcache.options import build
from kdcache.runs.ablation.jobs import run_with_bar
from kdcache.runs.ablation.pool import Job
from kdcache.runs.ablation.replicates import SplitColumns, split_option
from kdcache.runs.ablation.results import monitor_of
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.trials import MILESTONES, ONE_STAGE, STAGES, Trial, column_of, trials, tuned_options
from kdcache.runs.config import RunSettings
from kdcache.runs.prepare import prepare
from kdcache.runs.run import Run

TRIALS = 8  # for each row, where nobody says how many
TUNED = (*ONE_STAGE, MILESTONES, *STAGES)
TABLE = "tuning.csv"


def choose(
    comparison: Comparison,
    count: int,
    folder: Path,
    common: Mapping[str, Any],
    seeds: int = 1,
    workers: int = 1,
    columns: SplitColumns = (None,),
) -> pd.DataFrame:
    """Train all trials, mark the best of each row on each split column, and write ``tuning.csv``.

    Args:
        comparison: the rows.
        count: trials of each.
        folder: of the comparison.
        common: what ``train`` is called with in every run.
        seeds: trainings a trial, of which the mean score counts.
        workers: processes.
        columns: split columns.

    Returns:
        ``row``, ``split_column``, ``trial``, ``lr``, ``epochs`` (of methods of several stages ``lr_factor``,
        ``length``; both pairs where rows are of both kinds, NA in those that a row has not), ``settings`` (JSON),
        ``score`` (NaN where a training failed), ``problem``, ``chosen``: none of a row whose trials all failed.

    Raises:
        OptionError: the method has nothing to tune.
    """
    of_trials = [(trial, trial.jobs(folder, common, seeds)) for trial in trials(comparison, count, columns)]
    every = [job for _, jobs in of_trials for job in jobs]
    problems = run_with_bar(every, workers, folder, "trials", _trained_score)
    found: list[dict[str, Any]] = []
    for trial, jobs in of_trials:
        failed = [problems[job.label] for job in jobs if job.label in problems]
        found.append(
            {
                "row": trial.row.name,
                "split_column": column_of(trial.row, trial.split_column),
                "trial": trial.number,
                **{name: getattr(trial.options, name) for name in tuned_options(trial.method)},
                "settings": json.dumps(trial.settings),
                "score": math.nan if failed else sum(_trained_score(job) for job in jobs) / seeds,
                "problem": "; ".join(failed),
            }
        )
    varied = [name for name in (*ONE_STAGE, *STAGES) if any(name in trial for trial in found)]
    order = ["row", "split_column", "trial", *varied, "settings", "score", "problem"]
    table = _with_types(pd.DataFrame(found)[order])
    table["chosen"] = False
    for _, part in table.groupby(["row", "split_column"], sort=False):
        if part["score"].notna().any():
            number = best(dict(zip(part["trial"], part["score"], strict=True)))
            table.loc[part.index[part["trial"] == number], "chosen"] = True
    with atomic(folder / TABLE) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return table


def untuned(table: pd.DataFrame) -> dict[str, str]:
    """Name of each row of which, on some split column, every trial failed → the first problem, in words."""
    found: dict[str, str] = {}
    for (row, column), part in table.groupby(["row", "split_column"], sort=False):
        if not part["chosen"].any():
            on = f"on {column} " if table["split_column"].nunique() > 1 else ""
            found.setdefault(str(row), f"{on}every trial failed, the first with: {part['problem'].iloc[0]}")
    return found


def read_tuning(folder: Path) -> pd.DataFrame:
    """``tuning.csv`` as ``choose`` returned it, to the last digit."""
    table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False)
    names = [name for name in (*ONE_STAGE, *STAGES, "score") if name in table]
    numbers = {name: table[name].map(lambda text: float(text or "nan")) for name in names}
    return _with_types(table.astype({"trial": int}).assign(**numbers, chosen=table["chosen"] == "True"))


def _with_types(table: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers of epochs, also beside rows that have none."""
    if "epochs" not in table:
        return table
    return table.astype({"epochs": "Int64" if table["epochs"].isna().any() else int})


def automatic(comparison: Comparison, common: Mapping[str, Any], columns: SplitColumns = (None,)) -> int:
    """How many trials each row gets where nobody says: ``TRIALS``, or none where tuning would be refused; is logged."""
    differing = _differing(comparison)
    why = f"{differing} differs between rows" if differing else _unvalidated(comparison, common, columns)
    if why:
        logger.info(f"not tuned: {why}")
        return 0
    logger.info(f"tune={TRIALS}: each row gets {TRIALS} trials of learning rate and length; tune=0 keeps what it has")
    return TRIALS


def refuse(
    comparison: Comparison, common: Mapping[str, Any], columns: SplitColumns = (None,), of_paper: bool = False
) -> None:
    """``OptionError`` where rows cannot be tuned; the settings of a paper's rows may differ, tuning replaces them."""
    differing = _differing(comparison)
    if differing and not of_paper:
        raise OptionError(f"{differing} differs between rows, but tune chooses it for each: drop one of the two.")
    why = _unvalidated(comparison, common, columns)
    if why:
        raise OptionError(
            f"tune chooses on validation clips alone, and {why}: mark some, drop validation=0, or set tune=0."
        )


def _differing(comparison: Comparison) -> str:
    """The first option that is tuned and that rows of one method set unequally; empty: none."""
    for name in TUNED:
        values: dict[str, set[Any]] = {}
        for row in comparison.runnable:
            value = row.options.get(name)
            value = tuple(value) if isinstance(value, list) else value  # milestones of a preset
            values.setdefault(comparison.method_of(row), set()).add(value)
        if any(len(found) > 1 for found in values.values()):
            return name
    return ""


def _unvalidated(comparison: Comparison, common: Mapping[str, Any], columns: SplitColumns) -> str:
    """Where validation clips are missing, in words; empty: nowhere."""
    known = {field.name for field in fields(RunSettings)}
    seen: set[RunSettings] = set()
    for row in comparison.runnable:
        method = comparison.method_of(row)
        given = {k: v for k, v in {**common, "method": method, **row.options}.items() if k in known}
        own = Trial(method, row, 0, {}).options
        for column in columns:
            settings = replace(build(RunSettings, given), **split_option(column))
            if settings in seen:
                continue
            seen.add(settings)
            with quiet():
                splits = prepare(settings, own, {"budget": 0}, training=False).data.splits
            if VALIDATION not in splits:
                of_all = "the cache" if row is comparison.runnable[0] else f"row {row.name!r}"
                return f"{column or of_all} has no validation clips"
    return ""


def score(metrics: Mapping[str, Any], target: str, metric: str) -> float:
    """A trained trial's score: the metric on validation clips, at the epoch that was best on them.

    Raises:
        OptionError: the run has no validation clips.
    """
    if metrics["selected_by"] != "validation":
        raise OptionError("tune chooses on validation clips alone, and this run has none: set tune=0.")
    return float(metrics["best@validation"]["validation"][target][metric])


def _trained_score(job: Job) -> float:
    """The score of a job that has been trained."""
    run = Run(job.folder)
    return score(run.metrics, run.target, monitor_of(run))


def best(scores: Mapping[int, float]) -> int:
    """The trial with the highest score, the earliest of equals; NaN is a trial that failed.

    Raises:
        OptionError: all have failed.
    """
    usable = {number: value for number, value in sorted(scores.items()) if not math.isnan(value)}
    if not usable:
        raise OptionError("Every trial has failed.")
    return max(usable, key=lambda number: usable[number])
