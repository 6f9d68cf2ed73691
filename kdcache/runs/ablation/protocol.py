"""What a comparison trains: rows × split columns × seeds, before them the trials of each row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError, ReferenceRowError
from kdcache.files import atomic
from kdcache.runs.ablation.jobs import run_with_bar
from kdcache.runs.ablation.pool import Job
from kdcache.runs.ablation.replicates import TRIAL_SEED, Replicate, SplitColumns, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.trials import column_of
from kdcache.runs.ablation.tuning import automatic, choose, refuse, untuned

DESCRIPTION = "ablation.json"


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
    tune: int | None = None
    """Trials that each row gets; None: as ``tuning.automatic`` decides."""
    tune_seeds: int = 1
    workers: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the call sets for all rows, with several values where it makes a grid; the rows have them already."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("tune", 0), ("tune_seeds", 1), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name}={value}: give {least} or more.")
        if self.seeds > TRIAL_SEED:
            raise OptionError(f"seeds={self.seeds}: give up to {TRIAL_SEED}.")
        self.comparison.row(self.against)

    @property
    def replicates(self) -> list[Replicate]:
        """With what each row is run."""
        return [Replicate(column, seed) for column in self.split_columns for seed in range(self.seeds)]


def train_rows(protocol: AblationProtocol) -> None:
    """Tune and train every row; what has been trained before is not trained again.

    Leaves the runs, ``tuning.csv`` where there were trials, and ``ablation.json``: the call, the rows and their runs. A
    row that failed is marked so, and left out of what is compared.

    Raises:
        OptionError: nothing to tune on, rows that tuning would make alike, or the row failed that others are tested
            against.
        KdcacheError: a worker process died.
        KeyboardInterrupt, SystemExit: interrupted; the same call goes on.
    """
    p = protocol
    if p.tune:
        refuse(p.comparison, p.common, p.split_columns, of_paper=p.table is not None)
    tune = automatic(p.comparison, p.common, p.split_columns) if p.tune is None else p.tune
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    problems: dict[str, str] = {}
    if tune:
        tuned = choose(p.comparison, tune, p.folder, p.common, p.tune_seeds, p.workers, p.split_columns)
        best = tuned[tuned["chosen"]].to_dict("records")
        chosen = {(row["row"], row["split_column"]): json.loads(row["settings"]) for row in best}
        problems = untuned(tuned)
        _refuse_without_reference(p, problems)
    trainable = p.comparison.without(problems).runnable
    final = [  # one split column after the other: what is in memory is of one
        (row, Replicate(column, seed)) for column in p.split_columns for row in trainable for seed in range(p.seeds)
    ]
    jobs = [
        Job(
            f"{row.name}, {replicate}",
            run_folder(p.folder, row.slug, replicate),
            {
                **p.common,
                "method": p.comparison.method_of(row),
                **row.options,
                **chosen.get((row.name, column_of(row, replicate.split_column)), {}),
                **replicate.options,
            },
        )
        for row, replicate in final
    ]
    ended = run_with_bar(jobs, p.workers, p.folder, "runs")
    for (row, _), job in zip(final, jobs, strict=True):
        if job.label in ended:
            problems.setdefault(row.name, ended[job.label])
    _refuse_without_reference(p, problems)
    compared = p.comparison.without(problems)
    named = {row.name for row in compared.runnable}
    kept = [job for (row, _), job in zip(final, jobs, strict=True) if row.name in named]
    _describe(replace(p, comparison=compared), tune, kept)


def _refuse_without_reference(protocol: AblationProtocol, problems: Mapping[str, str]) -> None:
    """``ReferenceRowError`` where the row is among those that failed against which the others are tested."""
    name = protocol.against
    if name in problems:
        raise ReferenceRowError(
            f"{name}: {problems[name]} The other rows are tested against it, so nothing is compared yet: mend it, or "
            "name another with --against."
        )


def _describe(protocol: AblationProtocol, tune: int, jobs: list[Job]) -> None:
    """Write ``ablation.json``."""
    content: dict[str, Any] = {
        **protocol.common,
        "table": protocol.table,
        "preset": protocol.preset,
        "seeds": protocol.seeds,
        "tune": tune,
        "tune_seeds": protocol.tune_seeds,
        "against": protocol.against,
    }
    if list(protocol.split_columns) != [None]:
        content["split_columns"] = list(protocol.split_columns)
    if protocol.options:
        content["options"] = dict(protocol.options)
    content["comparison"] = asdict(protocol.comparison)
    content["rows"] = [{"label": j.label, "folder": str(j.folder), "arguments": j.arguments} for j in jobs]
    with atomic(protocol.folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
