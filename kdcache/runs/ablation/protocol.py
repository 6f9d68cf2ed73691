"""What a comparison trains: rows × draws × split columns × seeds, before them the trials of each row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kdcache.errors import OptionError, ReferenceRowError
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.description import DESCRIPTION, write_description
from kdcache.runs.ablation.draw_checks import check_draws, refuse_reported
from kdcache.runs.ablation.jobs import run_with_bar
from kdcache.runs.ablation.pool import THIS_PROCESS, Job, Pool
from kdcache.runs.ablation.replicates import (
    TRIAL_SEED,
    Replicate,
    SplitColumns,
    all_replicates,
    draw_numbers,
    run_folder,
)
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.tuning import (
    EACH,
    MIN_STEPS,
    TABLE,
    TRIALS,
    WIDEN,
    SearchSettings,
    Tuned,
    automatic,
    choose,
    differing_option,
    problems_of,
    refuse,
    refuse_differing,
    survey_rows,
    why_not,
)
from kdcache.runs.presets import TableRow
from kdcache.seals import read_json


@dataclass(frozen=True, kw_only=True)
class AblationProtocol:
    """A comparison and how it is made.

    Raises:
        OptionError: numbers that make no sense, or two ways of saying which clips train.
    """

    comparison: Comparison
    folder: Path
    """For the runs and all that is made of them."""
    common: Mapping[str, Any]
    """What ``train`` is called with in every run: method (where a row has no other), shards, device, precision,
    stream."""
    against: str
    """Name of the row that the others are tested against."""
    table: str | None = None
    """Of the paper, whose rows these are; None for rows of the user's own."""
    preset: str | None = None
    seeds: int = 5
    """How many: 0, 1, 2 …"""
    split_columns: SplitColumns = (None,)
    draws: int | None = None
    """How many: 0, 1, 2 …, each with labels, validation groups or a cache of its own; None: none are named, and
    everything is that of draw 0."""
    tune: int | None = None
    """Trials that each row gets; None: as ``tuning.automatic`` decides."""
    tune_seeds: int = 1
    tune_draws: int | Literal["each"] = "each"
    """Draws on which each trial is trained, for one choice; ``each``: a choice for each draw."""
    min_steps: int = MIN_STEPS
    """Optimiser steps that every row takes at least where it is tuned."""
    widen: int = WIDEN
    """How often a dimension of what is searched may be widened on each side."""
    retrain: bool = False
    """Trials hold some training clips out; final runs train on all and take their last epoch."""
    tune_validation: float = 0.2
    """Share of the training clips that the trials hold out with ``retrain``."""
    pool: Pool = THIS_PROCESS
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the call sets for all rows, with several values where it makes a grid; the rows have them already."""

    def __post_init__(self) -> None:
        least = {"seeds": 1, "draws": 1, "tune": 0, "tune_seeds": 1, "tune_draws": 1, "min_steps": 1, "widen": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < smallest:
                raise OptionError(f"{name}={value}: give {smallest} or more.")
        if self.seeds > TRIAL_SEED:
            raise OptionError(f"seeds={self.seeds}: give up to {TRIAL_SEED}.")
        if isinstance(self.tune_draws, str) and self.tune_draws != EACH:
            raise OptionError(f"tune_draws={self.tune_draws}: give a number, or {EACH}.")
        if isinstance(self.tune_draws, int) and self.tune_draws > (self.draws or 1):
            raise OptionError(f"tune_draws={self.tune_draws}: give no more than there are draws ({self.draws or 1}).")
        if not 0 < self.tune_validation < 1:
            raise OptionError(f"tune_validation={self.tune_validation}: give a share of the training clips.")
        self.comparison.row(self.against)

    @property
    def replicates(self) -> list[Replicate]:
        """With what each row is run."""
        return all_replicates(self.split_columns, self.seeds, self.draws)

    def calls(self, tuned: bool) -> Calls:
        """What its runs are called with. Teachers have a seed of their own where there are draws or trials: comparisons
        of versions without either then go on as they were."""
        return Calls(
            comparison=self.comparison,
            common=self.common,
            columns=self.split_columns,
            draws=self.draws,
            one_teacher=tuned or self.draws is not None,
            retrain=self.tune_validation if self.retrain else None,
        )


def train_rows(protocol: AblationProtocol) -> None:
    """Tune and train every row; what has been trained before is not trained again.

    Leaves the runs, ``tuning.csv`` where there were trials, and ``ablation.json``: the call, the rows and their runs. A
    row that failed is marked so, and left out of what is compared.

    Raises:
        OptionError: nothing to tune on, rows that tuning would make alike, draws that cannot be made or vary nothing,
            or the row failed that others are tested against.
        KdcacheError: a worker process died.
        KeyboardInterrupt, SystemExit: interrupted; the same call goes on.
    """
    p = protocol
    if p.tune and p.table is None:
        refuse_differing(p.comparison)
    calls = p.calls(tuned=p.tune != 0)
    calls = check_draws(calls)
    calls.check()
    tuned = _tune(p, calls)
    if tuned is None:
        calls = replace(calls, one_teacher=p.calls(tuned=False).one_teacher)
    problems = {} if tuned is None else dict(tuned.problems)
    _refuse_without_reference(p, problems)
    trainable = p.comparison.without(problems).runnable
    final = [(row, each) for of_data in _by_data(p.replicates) for row in trainable for each in of_data]
    jobs = [
        Job(
            f"{row.name}, {replicate}",
            run_folder(p.folder, row.slug, replicate),
            {
                **calls(row, replicate.split_column, replicate.draw, "final", _chosen(tuned, row, replicate)),
                "seed": replicate.seed,
            },
            calls.shared(replicate.draw),
        )
        for row, replicate in final
    ]
    ended = run_with_bar(jobs, p.pool, p.folder, "runs")
    for (row, _), job in zip(final, jobs, strict=True):
        if job.label in ended:
            problems.setdefault(row.name, ended[job.label])
    _refuse_without_reference(p, problems)
    compared = p.comparison.without(problems)
    named = {row.name for row in compared.runnable}
    kept = [job for (row, _), job in zip(final, jobs, strict=True) if row.name in named]
    _describe(replace(p, comparison=compared), tuned, kept)


def _tune(p: AblationProtocol, calls: Calls) -> Tuned | None:
    """Tune as the protocol says; None where nothing is."""
    if p.tune == 0 or (p.tune is None and p.table is None and differing_option(p.comparison)):
        if p.tune is None:
            automatic(calls, None)
        return None
    numbers = draw_numbers(calls.draws)
    surveyed = {draw: survey_rows(calls, draw) for draw in numbers}
    _refuse_without_reference(p, problems_of(surveyed))
    lacking = next((its for its in surveyed.values() if why_not(calls, its)), surveyed[numbers[0]])
    if p.tune:
        refuse(calls, lacking)
    count = automatic(calls, lacking) if p.tune is None else p.tune
    if not count:
        return None
    _refuse_other_protocol(p)
    how = SearchSettings(count=count, seeds=p.tune_seeds, min_steps=p.min_steps, widen=p.widen)
    draws = [[n] for n in numbers] if isinstance(p.tune_draws, str) else [numbers[: p.tune_draws]]
    if len(draws) < len(numbers):
        refuse_reported(calls, range(len(draws[0])))
    return choose(calls, p.folder, how, surveyed, draws, p.pool)


def _refuse_other_protocol(p: AblationProtocol) -> None:
    """``OptionError`` where the folder holds a comparison that a version with other trials has tuned."""
    path = p.folder / DESCRIPTION
    if path.exists():
        before = read_json(path, f"restore it, or delete it if {p.folder} was not tuned by a version before 0.2")
        if before.get("tune") and "space" not in before:
            raise OptionError(
                f"{p.folder} was tuned by an earlier version, whose trials were others: choose another folder for out."
            )


def _by_data(replicates: Sequence[Replicate]) -> list[list[Replicate]]:
    """Replicates on the same data together: what is in memory is of one draw and split column."""
    return [list(same) for _, same in itertools.groupby(replicates, key=lambda r: (r.draw, r.split_column))]


def _chosen(tuned: Tuned | None, row: TableRow, replicate: Replicate) -> dict[str, Any]:
    return {} if tuned is None else tuned.settings(row.name, replicate.split_column, replicate.draw)


def _refuse_without_reference(protocol: AblationProtocol, problems: Mapping[str, str]) -> None:
    """``ReferenceRowError`` where the row is among those that failed against which the others are tested."""
    name = protocol.against
    if name in problems:
        raise ReferenceRowError(
            f"{name}: {problems[name]} The other rows are tested against it, so nothing is compared yet: mend it, or "
            "name another with --against."
        )


def _describe(protocol: AblationProtocol, tuned: Tuned | None, jobs: list[Job]) -> None:
    """Write ``ablation.json``."""
    p = protocol
    content: dict[str, Any] = {
        **p.common,
        "table": p.table,
        "preset": p.preset,
        "seeds": p.seeds,
        "tune": 0 if tuned is None else int(p.tune or TRIALS),
        "tune_seeds": p.tune_seeds,
        "against": p.against,
    }
    if p.draws is not None:
        content["draws"] = p.draws
    if p.retrain:
        content["retrain"] = True
    if tuned is not None:
        several = len(draw_numbers(p.draws)) > 1
        content |= {
            "tune_draws": p.tune_draws if several else 1,
            "min_steps": p.min_steps,
            "widen": p.widen,
            "space": tuned.space,
        }
        if p.retrain:
            content["tune_validation"] = p.tune_validation
    if list(p.split_columns) != [None]:
        content["split_columns"] = list(p.split_columns)
    if p.options:
        content["options"] = dict(p.options)
    content["comparison"] = asdict(p.comparison)
    content["rows"] = [{"label": j.label, "folder": str(j.folder), "arguments": j.arguments} for j in jobs]
    write_description(p.folder, content, [] if tuned is None else [TABLE])
