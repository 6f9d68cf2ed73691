"""What a finished comparison comes to: read from its runs, written as ``results.csv`` and ``tests.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.csv_text import neutral_frame
from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.runs.ablation import results
from kdcache.runs.ablation.costs import COSTS, costs_of_rows
from kdcache.runs.ablation.description import DESCRIPTION, REMEDY, read_description
from kdcache.runs.ablation.factors import Factors, factors
from kdcache.runs.ablation.replicates import Replicate, all_replicates, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.ablation.seen_labels import SeenLabels, seen_labels
from kdcache.runs.ablation.tuning import read_tuning
from kdcache.runs.run import Run

SEARCH = ("tune", "tune_seeds", "tune_draws", "min_steps", "retrain", "space")


@dataclass(frozen=True)
class Conclusion:
    """All that a report needs to know of a comparison."""

    path: Path
    comparison: Comparison
    replicates: list[Replicate]
    against: str
    """The row that the others are tested against."""
    target: str
    """Which label is predicted."""
    monitor: str
    """The metric that selects epochs, and by which rows are tested."""
    split: str
    """The clips whose numbers count: test, or validation where there are no others."""
    weights: str
    """The weights that count: ``best`` on validation clips, or ``last`` where there are none."""
    results: pd.DataFrame
    """See ``results.collect``."""
    tests: pd.DataFrame
    """See ``results.tests``."""
    tuning: pd.DataFrame
    """See ``tuning.choose``; empty where rows were not tuned."""
    factors: Factors
    """What the runs of a row differ in."""
    random: tuple[str, ...]
    """Streams that a backbone of random weights has computed."""
    same_examples: bool = True
    """Whether all rows were trained and scored on the same examples."""
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """See ``costs.costs_of_rows``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the call set for all rows; several values made a grid."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """How tuning searched: those of ``SEARCH`` that ``ablation.json`` has; of earlier versions it has few."""
    seen_labels: Sequence[SeenLabels] = ()
    """Rows whose features come from a backbone that has seen labels of their training clips."""


def conclude(folder: str | Path, source: str | Path | None = None) -> Conclusion:
    """Gather the numbers of a comparison whose runs have finished; write ``results.csv``, ``tests.csv``, ``cost.csv``.

    ``source``: to answer for, of each row as long as is measured; None: what was measured before stays.

    Raises:
        OptionError: the folder holds no comparison, or a run has not finished.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        comparison = Comparison.from_plain(description["comparison"])
        columns = description.get("split_columns", [None])
        replicates = all_replicates(columns, description["seeds"], description.get("draws"))
        against, is_tuned = description["against"], description["tune"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"{folder / DESCRIPTION} is of no comparison ({error!r}): {REMEDY}.") from error
    run = Run(run_folder(folder, comparison.row(against).slug, replicates[0]))
    monitor = results.monitor_of(run)
    found = results.collect(comparison, folder, replicates)
    split, weights = results.reported_on(found)
    tests = results.tests(comparison, found, against, monitor, split)
    costs = costs_of_rows(comparison, folder, replicates[0], source)
    for name, table in (("results.csv", found), ("tests.csv", tests), (COSTS, costs)):
        with atomic(folder / name) as temporary:
            neutral_frame(table).to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    tuned = read_tuning(folder) if is_tuned else pd.DataFrame()
    same = all(
        len({Run(run_folder(folder, row.slug, each)).resolved.get("samples") for row in comparison.runnable}) == 1
        for each in replicates
    )
    read = (
        found,
        tests,
        tuned,
        factors(comparison, folder, replicates),
        _random(comparison, folder, replicates[0]),
        same,
        costs,
        description.get("options", {}),
        {name: description[name] for name in SEARCH if name in description},
        seen_labels(comparison, folder, replicates),
    )
    return Conclusion(folder, comparison, replicates, against, run.target, monitor, split, weights, *read)


def _random(comparison: Comparison, folder: Path, replicate: Replicate) -> tuple[str, ...]:
    """Streams that the rows read whose backbone had random weights."""
    found: dict[str, None] = {}
    for row in comparison.runnable:
        for name, recipe in Run(run_folder(folder, row.slug, replicate)).recipes.items():
            if "spec" in recipe.get("backbone", {}).get("weights", {}):
                found[name] = None
    return tuple(found)
