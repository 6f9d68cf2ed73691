"""The same number of trials for every row: learning rate and length, chosen on validation clips alone.

A comparison at one fixed learning rate favours whichever row that rate happens to suit. With ``tune=N`` every row gets
the same N trials: the first with its own settings, the others with settings that are the same for all rows of a method.

- ``lr`` log-uniform between a tenth and ten times the first row's;
- ``epochs`` a half, once or twice the first row's, with ``milestones`` in proportion;
- for a method of several stages, which has a schedule for each, ``lr_factor`` and ``length`` instead: what multiplies
  every stage's learning rate, and every stage's epochs and milestones.

They are points of a Halton sequence, which covers both evenly for any N (Bergstra & Bengio 2012, Section 5). Trials
are trained with seeds that no final run has, and scored by the metric that selects epochs, at the best epoch on the
validation clips. Nothing here reads a number of other clips: without a split named ``validation`` nothing is tuned.
Where a protocol has several split columns, each row is tuned on each of them by itself: what is a test clip in one may
be a validation clip in another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.log import logger, quiet
from kdcache.methods import method as method_module
from kdcache.methods.contract import VALIDATION
from kdcache.options import build
from kdcache.runs.ablation.jobs import run_with_bar
from kdcache.runs.ablation.pool import Job
from kdcache.runs.ablation.replicates import TRIAL_SEED, SplitColumns, row_folder, split_option
from kdcache.runs.ablation.results import monitor_of
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.config import SETTABLE, RunSettings
from kdcache.runs.prepare import prepare
from kdcache.runs.presets import TableRow
from kdcache.runs.run import Run

TRIALS = 8  # for each row, where nobody says how many
LR_SPAN = 10.0
LENGTHS = (0.5, 1.0, 2.0)
FIRST = 2  # point of the sequence that is trial 1; before it lie the rows' own settings
ONE_STAGE = ("lr", "epochs")
STAGES = ("lr_factor", "length")
MILESTONES = "milestones"
TUNED = (*ONE_STAGE, MILESTONES, *STAGES)
TABLE = "tuning.csv"


@dataclass(frozen=True)
class Trial:
    """One trial of one row on one split column."""

    method: str
    """That trains the row."""
    row: TableRow
    number: int
    settings: dict[str, Any]
    """On top of the row's options."""
    split_column: str | None = None

    @property
    def options(self) -> Any:
        """The method's options of the trial, as far as they are known before the data."""
        given = {**self.row.options, **self.settings}
        return build(method_module(self.method).Options, {k: v for k, v in given.items() if k not in SETTABLE})

    def jobs(self, out: Path, common: Mapping[str, Any], seeds: int) -> list[Job]:
        """Its trainings."""
        name = ", ".join(filter(None, [self.row.name, self.split_column]))
        folder = row_folder(out, self.row.slug, self.split_column) / "tuning" / f"trial-{self.number}"
        call = {**common, "method": self.method, **self.row.options, **split_option(self.split_column)}
        return [
            Job(
                f"{name}, trial {self.number}, seed {seed}",
                folder / f"seed-{seed}",
                {**call, **self.settings, "seed": seed},
            )
            for seed in range(TRIAL_SEED, TRIAL_SEED + seeds)
        ]


def column_of(row: TableRow, column: str | None) -> str:
    """The manifest column by which a row's clips are split."""
    return column or str(row.options.get("split_column", RunSettings.split_column))


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
        ``score`` (NaN where a training failed), ``problem``, ``chosen``.

    Raises:
        OptionError: every trial of a row failed, or the method has nothing to tune.
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
    for (row, column), part in table.groupby(["row", "split_column"], sort=False):
        if part["score"].isna().all():
            on = f" on {column}" if len(columns) > 1 else ""
            raise OptionError(f"{row}{on}: every trial failed, the first with: {part['problem'].iloc[0]}")
        number = best(dict(zip(part["trial"], part["score"], strict=True)))
        table.loc[part.index[part["trial"] == number], "chosen"] = True
    with atomic(folder / TABLE) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return table


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


def tuned_options(method: str) -> tuple[str, ...]:
    """The options of learning rate and length that a method has.

    Raises:
        OptionError: it has none.
    """
    names = {field.name for field in fields(method_module(method).Options)}
    for options in (ONE_STAGE, STAGES):
        if names.issuperset(options):
            return options
    raise OptionError(
        f"tune: {method} has no lr and epochs to tune, nor lr_factor and length of several stages; leave tune out."
    )


def trials(comparison: Comparison, count: int, columns: SplitColumns = (None,)) -> list[Trial]:
    """The same ``count`` trials for each row on each split column; trial 0 leaves the row as it is.

    Raises:
        OptionError: a row's method has neither learning rate and number of epochs nor factors of these.
    """
    drawn: dict[str, list[dict[str, Any]]] = {}
    for row in comparison.runnable:
        method = comparison.method_of(row)
        if method not in drawn:  # its first row
            drawn[method] = _draw(Trial(method, row, 0, {}), count)
    return [
        Trial(comparison.method_of(row), row, number, settings, column)
        for column in columns
        for row in comparison.runnable
        for number, settings in enumerate(drawn[comparison.method_of(row)])
    ]


def _draw(first: Trial, count: int) -> list[dict[str, Any]]:
    """The settings of every trial of a method's rows, around those of its first row; none for trial 0."""
    options, varied = first.options, tuned_options(first.method)
    drawn: list[dict[str, Any]] = [{}]
    for k in range(FIRST, FIRST + count - 1):
        length = LENGTHS[int(radical_inverse(k, 3) * len(LENGTHS))]
        factor = LR_SPAN ** (2 * radical_inverse(k, 2) - 1)
        settings: dict[str, Any] = {}
        if varied == ONE_STAGE:
            settings |= {"lr": _rounded(options.lr * factor), "epochs": max(1, round(options.epochs * length))}
            if hasattr(options, MILESTONES):
                settings[MILESTONES] = tuple(max(1, round(m * length)) for m in options.milestones)
        else:
            settings |= {"lr_factor": _rounded(options.lr_factor * factor), "length": options.length * length}
        drawn.append(settings)
    return drawn


def _rounded(rate: float) -> float:
    """To three digits."""
    return float(f"{rate:.3g}")


def radical_inverse(k: int, base: int) -> float:
    """The digits of k mirrored at the point: 1, 2, 3, 4 … → 0.5, 0.25, 0.75, 0.125 … in base 2."""
    value, scale = 0.0, 1.0
    while k:
        scale /= base
        value += scale * (k % base)
        k //= base
    return value


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
