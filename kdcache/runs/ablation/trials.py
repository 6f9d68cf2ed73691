"""The trials of a comparison: the same N settings of learning rate and length for every row of a method.

- ``lr`` log-uniform between a tenth and ten times the first row's;
- ``epochs`` a half, once or twice the first row's, with ``milestones`` in proportion;
- for a method of several stages, which has a schedule for each, ``lr_factor`` and ``length`` instead: what multiplies
  every stage's learning rate, and every stage's epochs and milestones.

They are points of a Halton sequence, which covers both evenly for any N (Bergstra & Bengio 2012, Section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError
from kdcache.methods import method as method_module
from kdcache.options import build
from kdcache.runs.ablation.pool import Job
from kdcache.runs.ablation.replicates import TRIAL_SEED, SplitColumns, row_folder, split_option
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.config import SETTABLE, RunSettings
from kdcache.runs.presets import TableRow

LR_SPAN = 10.0
LENGTHS = (0.5, 1.0, 2.0)
FIRST = 2  # point of the sequence that is trial 1; before it lie the rows' own settings
ONE_STAGE = ("lr", "epochs")
STAGES = ("lr_factor", "length")
MILESTONES = "milestones"


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
        made = build(method_module(self.method).Options, {k: v for k, v in given.items() if k not in SETTABLE})
        return made.completed() if hasattr(made, "completed") else made

    def jobs(self, out: Path, common: Mapping[str, Any], seeds: int) -> list[Job]:
        """Its trainings."""
        name = ", ".join(filter(None, [self.row.name, self.split_column]))
        folder = row_folder(out, self.row.slug, self.split_column) / "tuning" / f"trial-{self.number}"
        call = {**common, "method": self.method, **self.row.options, **split_option(self.split_column)}
        return [
            Job(
                f"{name}, trial {self.number}, seed {seed}",
                folder / f"seed-{seed}",
                {**call, **self.settings, "seed": seed, "keep_stages": False},
            )
            for seed in range(TRIAL_SEED, TRIAL_SEED + seeds)
        ]


def column_of(row: TableRow, column: str | None) -> str:
    """The manifest column by which a row's clips are split."""
    return column or str(row.options.get("split_column", RunSettings.split_column))


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
        if varied == STAGES:
            drawn.append({"lr_factor": _rounded(options.lr_factor * factor), "length": options.length * length})
            continue
        settings = {"lr": _rounded(options.lr * factor), "epochs": max(1, round(options.epochs * length))}
        if hasattr(options, MILESTONES):
            settings[MILESTONES] = tuple(max(1, round(m * length)) for m in options.milestones)
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
