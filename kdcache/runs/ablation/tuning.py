"""The same number of trials for every row, chosen on validation clips alone.

A comparison at one fixed learning rate favours whichever row that rate happens to suit. With ``tune=N`` every row gets
N trials: the first with its own settings, the others at points of a grid of learning rates, lengths, and what the
row's objective adds (for a row that adds nothing the baseline's own knobs); see ``space``. About half of them tell the
length, the others are made at it.

Teachers come first: each is searched as a run of its own, by its own metric at the epoch that is handed on, and what is
chosen holds for all rows that have it. Then all rows of a method take one length, so that all take the same number of
optimiser steps. Where a chosen value lies on the edge of a grid, the grid gets one more value beyond it, and every row
the same number of further trials.

Trials are trained with seeds that no final run has and scored by the
metric that selects epochs, at the best epoch on the validation clips; where final runs train on all clips, and so take
their last epoch, at the last. Nothing here reads a number of other clips, and nothing is tuned on clips that are
reported. Where a protocol has several split columns, each row is tuned on each of them by itself: what is a test clip
in one may be a validation clip in another.

Where there are draws, each is tuned by itself, too. Trials differ by less than the validation clips can tell, so that
another draw chooses other settings: with settings of one draw, intervals over draws leave out what the choice adds,
which may be more than all they hold. ``tune_draws=N`` chooses once, by the mean over the first N draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from kdcache.csv_text import neutral_frame, original_frame
from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.log import logger
from kdcache.methods.contract import VALIDATION
from kdcache.runs.ablation.calls import TEST, Calls, column_of
from kdcache.runs.ablation.description import REMEDY
from kdcache.runs.ablation.groups import SearchGroup, Surveys, groups_of_rows, groups_of_teachers
from kdcache.runs.ablation.jobs import run_with_bar
from kdcache.runs.ablation.pool import THIS_PROCESS, Job, Pool
from kdcache.runs.ablation.results import monitor_of
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.survey import RowSurvey, survey
from kdcache.runs.ablation.trials import MILESTONES, ONE_STAGE, STAGES, SearchedRow, Trial, option_value
from kdcache.runs.presets import TableRow
from kdcache.runs.run import Run

TRIALS = 16
"""For each row, where nobody says how many: three at each of three lengths, then seven at the best. [reconstructed]"""
EACH: Literal["each"] = "each"
MIN_STEPS = 500
WIDEN = 2
TUNED = (*ONE_STAGE, MILESTONES, *STAGES)
TABLE = "tuning.csv"


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How much is searched."""

    count: int
    """Trials of each row before any dimension is widened."""
    seeds: int = 1
    """Trainings a trial on each draw, of which the mean score counts."""
    draws: Sequence[int | None] = (None,)
    """On which each trial is trained."""
    """The first so many draws take part, where there are any."""
    min_steps: int = MIN_STEPS
    """The base length is raised to so many optimiser steps where a row would take fewer."""
    widen: int = WIDEN
    """How often a dimension may be widened on each side."""


@dataclass
class Search:
    """The trials of a comparison while they are made."""

    calls: Calls
    folder: Path
    settings: SearchSettings
    pool: Pool = THIS_PROCESS
    groups: list[SearchGroup] = field(default_factory=list)

    def run(self, groups: Sequence[SearchGroup]) -> None:
        """Train the trials of these groups, widen where a choice lies on an edge, and train again."""
        s = self.settings
        for stage in (SearchGroup.first, SearchGroup.rest):
            self._train([(group, trial) for group in groups for trial in stage(group, s.count)])
        while new := [(group, trial) for group in groups for trial in group.widened(s.count, s.widen)]:
            self._train(new)
        self.groups += groups

    def _train(self, trials: Sequence[tuple[SearchGroup, Trial]]) -> None:
        s, calls = self.settings, self.calls
        of_trial = [trial.jobs(calls, self.folder, s.seeds, s.draws) for _, trial in trials]

        def shards(job: Job) -> str:
            return str(job.arguments["shards"])

        every = sorted((job for jobs in of_trial for job in jobs), key=shards)  # one cache after the other
        problems = run_with_bar(every, self.pool, self.folder, "trials")
        for (group, trial), jobs in zip(trials, of_trial, strict=True):
            searched = next(m for m in group.members if m.row is trial.row)
            failed = [problems[job.label] for job in jobs if job.label in problems]
            searched.problems[trial.number] = "; ".join(failed)
            if not failed:
                scores = [trained_score(Run(job.folder), self._at_last(group, job)) for job in jobs]
                searched.scores[trial.number] = sum(scores) / len(scores)

    def _at_last(self, group: SearchGroup, job: Job) -> bool:
        """Whether the last epoch counts: it is what a teacher hands on, and what runs without validation clips take."""
        of_teacher = group.is_teacher and not getattr(self.calls.settings(job.arguments)[1], "patience", 0)
        return of_teacher or self.calls.retrain is not None


Chosen = dict[tuple[str, str | None], dict[str, Any]]
"""Settings of each row, by its name and split column, on top of its options."""


@dataclass(frozen=True)
class Tuned:
    """What tuning came to."""

    table: pd.DataFrame
    """See ``choose``."""
    chosen: dict[int | None, Chosen]
    """By draw; None: of all."""
    problems: dict[str, str]
    """Name of each row of which, on some split column, nothing could be chosen → why."""
    space: list[dict[str, Any]]
    """What was searched: ``SearchGroup.described``, and the draw where each has its own."""

    def settings(self, row: str, column: str | None, draw: int | None) -> dict[str, Any]:
        """What was chosen for a row, on top of its options."""
        return self.chosen[draw if draw in self.chosen else None][row, column]


def choose(
    calls: Calls,
    folder: Path,
    settings: SearchSettings,
    surveyed: Mapping[int | None, Surveys],
    draws: Sequence[Sequence[int | None]],
    pool: Pool = THIS_PROCESS,
) -> Tuned:
    """Train all trials, of teachers first, mark the best of each row on each split column, and write ``tuning.csv``.

    Its columns are ``row``, ``split_column``, ``draw`` (where there are several choices), ``trial``, ``lr``, ``epochs``
    (of methods of several stages ``lr_factor``, ``length``; both pairs where rows are of both kinds, NA in those that a
    row has not), ``settings`` (JSON: on top of the row's options), ``score`` (NaN where a training failed),
    ``problem``, ``chosen``, and ``edge``: which chosen values still lie on the edge of what was searched, such as
    ``lr high``.

    Args:
        calls: of the comparison.
        folder: of it.
        settings: how much is searched.
        surveyed: of every draw, see ``survey_rows``; a row with a problem in any of them is not searched.
        draws: of each choice, those on which its trials are trained; several choices hold for one draw each.
        pool: where trials are trained.

    Raises:
        OptionError: a method has nothing to tune.
    """
    each = len(draws) > 1
    tables, spaces = list[pd.DataFrame](), list[dict[str, Any]]()
    chosen, problems = dict[int | None, Chosen](), problems_of(surveyed)
    for of_choice in draws:
        search = Search(calls, folder, replace(settings, draws=of_choice), pool)
        chosen[of_choice[0] if each else None] = _chosen(search, surveyed[of_choice[0]], problems)
        table, space = _table(search), [group.described() for group in search.groups]
        if each:
            table.insert(list(table.columns).index("trial"), "draw", of_choice[0])
            space = [{"draw": of_choice[0], **group} for group in space]
        tables.append(table)
        spaces += space
    table = pd.concat(tables, ignore_index=True)
    with atomic(folder / TABLE) as temporary:
        neutral_frame(table).to_csv(temporary, index=False, lineterminator="\n")
    return Tuned(table, chosen, problems, spaces)


def _chosen(search: Search, surveyed: Surveys, problems: dict[str, str]) -> Chosen:
    """Train the trials of one choice; ``problems`` takes what went wrong with a row."""
    calls, settings = search.calls, search.settings
    draw = settings.draws[0]

    def survey_row(row: TableRow, column: str | None) -> RowSurvey:
        return survey(calls, calls(row, column, draw, "trial", {}))

    teachers, of_row = groups_of_teachers(calls, surveyed, settings.min_steps, survey_row)
    search.run(teachers)
    fixed: dict[tuple[str, str | None], Mapping[str, Any]] = {}
    for key, group in of_row.items():
        (teacher,) = group.members
        best = group.chosen(teacher)
        if best is None:
            problems.setdefault(key[0], f"every trial of its teacher failed, the first with: {teacher.problems[0]}")
        else:
            fixed[key] = teacher.grid.base.settings(best.point)
    rows = groups_of_rows(calls, surveyed, settings.min_steps, fixed)
    for group in rows:
        group.members = [m for m in group.members if m.row.name not in problems]
    search.run([group for group in rows if group.members])
    chosen: Chosen = {}
    for group in search.groups:
        for m in group.members:
            best = group.chosen(m)
            if best is not None:
                chosen[m.row.name, m.split_column] = best.settings
            elif not group.is_teacher:
                on = f"on {m.split_column} " if len(calls.columns) > 1 else ""
                problems.setdefault(m.row.name, on + _why_none(m))
    return chosen


def _why_none(searched: SearchedRow) -> str:
    if searched.scores:
        return "no trial succeeded at the length that the rows have in common."
    return f"every trial failed, the first with: {searched.problems[0]}"


def _table(search: Search) -> pd.DataFrame:
    found: list[dict[str, Any]] = []
    for group in search.groups:
        for m in group.members:
            best, rates = group.chosen(m), m.grid.base.rates
            names = ONE_STAGE if rates.whole else STAGES
            for trial in m.trials:
                call = search.calls(m.row, m.split_column, None, "trial", trial.settings)
                options = search.calls.settings(call)[1]
                values = (option_value(options, name) for name in (rates.lr, rates.length))
                edges = m.edges(trial) if trial is best else []
                found.append(
                    {
                        "row": m.row.name,
                        "split_column": column_of(m.row, m.split_column),
                        "trial": trial.number,
                        **dict(zip(names, values, strict=True)),
                        "settings": json.dumps(trial.settings),
                        "score": m.scores.get(trial.number, math.nan),
                        "problem": m.problems[trial.number],
                        "chosen": trial is best,
                        "edge": ", ".join(f"{rates.name(name)} {side}" for name, side in edges),
                    }
                )
    varied = [name for name in (*ONE_STAGE, *STAGES) if any(name in trial for trial in found)]
    order = ["row", "split_column", "trial", *varied, "settings", "score", "problem", "chosen", "edge"]
    return _with_types(pd.DataFrame(found, columns=order))


def read_tuning(folder: Path) -> pd.DataFrame:
    """``tuning.csv`` as ``choose`` returned it, to the last digit."""
    try:
        table = original_frame(pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False))
        names = [name for name in (*ONE_STAGE, *STAGES, "score") if name in table]
        numbers = {name: table[name].map(lambda text: float(text or "nan")) for name in names}
        whole = {name: int for name in ("trial", "draw") if name in table}
        return _with_types(table.astype(whole).assign(**numbers, chosen=table["chosen"] == "True"))
    except (ValueError, KeyError, OverflowError) as error:
        raise OptionError(f"{folder / TABLE} is damaged ({error}): {REMEDY}.") from error


def _with_types(table: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers of epochs, also beside rows that have none."""
    if "epochs" not in table:
        return table
    return table.astype({"epochs": "Int64" if table["epochs"].isna().any() else int})


def survey_rows(calls: Calls, draw: int | None) -> Surveys:
    """What is known of each row on each split column before it trains on a draw."""
    return {
        (row.name, column): survey(calls, calls(row, column, draw, "trial", {}))
        for column in calls.columns
        for row in calls.comparison.runnable
    }


def problems_of(surveyed: Mapping[int | None, Surveys]) -> dict[str, str]:
    """Name of each row that cannot be trained on some draw → why, on the first of these."""
    found: dict[str, str] = {}
    for of_draw in surveyed.values():
        for (name, _), known in of_draw.items():
            if known.problem:
                found.setdefault(name, known.problem)
    return found


def refuse_differing(comparison: Comparison) -> None:
    """``OptionError`` where rows of one method differ in what is tuned."""
    differing = differing_option(comparison)
    if differing:
        raise OptionError(f"{differing} differs between rows, but tune chooses it for each: drop one of the two.")


def why_not(calls: Calls, surveyed: Surveys) -> str:
    """Why nothing may be tuned on these clips, in words; empty where it may."""
    first = calls.comparison.runnable[0].name
    for (name, column), known in surveyed.items():
        if known.problem:
            continue
        of_all = "the cache" if name == first else f"row {name!r}"
        if VALIDATION not in known.splits:
            return f"{column or of_all} has no validation clips"
        if TEST not in known.splits:
            return f"{column or of_all} has no test clips, so its validation clips are those that are reported"
    return ""


def differing_option(comparison: Comparison) -> str:
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


def automatic(calls: Calls, surveyed: Surveys | None) -> int:
    """How many trials each row gets where nobody says: ``TRIALS``, or none where tuning would be refused; is logged.

    ``surveyed`` may be left out where rows differ in what is tuned."""
    differing = differing_option(calls.comparison)
    why = f"{differing} differs between rows" if differing or surveyed is None else why_not(calls, surveyed)
    if why:
        logger.info(f"not tuned: {why}")
        return 0
    logger.info(
        f"tune={TRIALS}: each row gets {TRIALS} trials of learning rate, length and what its objective adds; tune=0 "
        "keeps what it has"
    )
    return TRIALS


def refuse(calls: Calls, surveyed: Surveys) -> None:
    """``OptionError`` where there are no clips on which anything may be tuned."""
    why = why_not(calls, surveyed)
    if why:
        raise OptionError(
            f"tune chooses on validation clips that are not reported, and {why}: mark some, drop validation=0, set "
            "retrain, which holds some of the training clips out for the trials alone, or set tune=0."
        )


def trained_score(run: Run, at_last: bool) -> float:
    """A trained trial's score: the metric that selects epochs on validation clips, at the best epoch or the last.

    Raises:
        OptionError: the run has no validation clips.
    """
    metrics = run.metrics
    if metrics["selected_by"] != VALIDATION:
        raise OptionError("tune chooses on validation clips alone, and this run has none: set tune=0.")
    return float(metrics["last" if at_last else f"best@{VALIDATION}"][VALIDATION][run.target][monitor_of(run)])
