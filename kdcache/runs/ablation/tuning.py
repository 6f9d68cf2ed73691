"""The same number of trials for every row: learning rate and length, chosen on validation clips alone.

A comparison at one fixed learning rate favours whichever row that rate happens to suit. With ``tune=N`` every row gets
the same N trials: the first with its own settings, the others with settings that are the same for all rows.

- ``lr`` log-uniform between a tenth and ten times the first row's;
- ``epochs`` a half, once or twice the first row's, with ``milestones`` in proportion.

They are points of a Halton sequence, which covers both evenly for any N (Bergstra & Bengio 2012, Section 5). Trials
are trained with seeds that no final run has, and scored by the metric that selects epochs, at the best epoch on the
validation split. Nothing here reads a number of another part. Where a protocol has several splits, each row is tuned on
each of them by itself: what is a test clip in one may be a validation clip in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError
from kdcache.methods import method as method_module
from kdcache.runs.ablation.pool import Job
from kdcache.runs.ablation.replicates import Splits, row_folder, split_option
from kdcache.runs.ablation.rows import Options, Plan, Row
from kdcache.runs.config import SETTABLE, Settings, build

TRIALS = 8  # for each row, where nobody says how many
SEED = 1000  # of the first trial run; final runs have seeds below
LR_SPAN = 10.0
LENGTHS = (0.5, 1.0, 2.0)
FIRST = 2  # point of the sequence that is trial 1; before it lie the rows' own settings
TUNED = ("lr", "epochs", "milestones")


@dataclass(frozen=True)
class Trial:
    """One trial of one row on one split."""

    row: Row
    number: int
    settings: Options
    """On top of the row's options."""
    split: str | None = None

    def options(self, method: str) -> Any:
        """The method's options of the trial, as far as they are known before the data."""
        given = {**self.row.options, **self.settings}
        return build(method_module(method).Options, {k: v for k, v in given.items() if k not in SETTABLE})

    def jobs(self, out: Path, common: Mapping[str, Any], seeds: int) -> list[Job]:
        """Its trainings."""
        name = ", ".join(filter(None, [self.row.name, self.split]))
        folder = row_folder(out, self.row.slug, self.split) / "tuning" / f"trial-{self.number}"
        return [
            Job(
                f"{name}, trial {self.number}, seed {seed}",
                folder / f"seed-{seed}",
                {**common, **self.row.options, **split_option(self.split), **self.settings, "seed": seed},
            )
            for seed in range(SEED, SEED + seeds)
        ]


def split_column(row: Row, split: str | None) -> str:
    """The manifest column by which a row is run."""
    return split or str(row.options.get("split", Settings.split))


def trials(plan: Plan, count: int, splits: Splits = (None,)) -> list[Trial]:
    """The same ``count`` trials for each row on each split; trial 0 leaves the row as it is.

    Raises:
        OptionError: the method has no learning rate or no number of epochs, or rows fix them one by one.
    """
    kind = method_module(plan.method).Options
    names = {field.name for field in fields(kind)}
    if not {"lr", "epochs"} <= names:
        raise OptionError(f"tune: {plan.method} has no lr and epochs to tune; leave tune out.")
    first = Trial(plan.runnable[0], 0, {}).options(plan.method)
    drawn: list[Options] = [{}]
    for k in range(FIRST, FIRST + count - 1):
        length = LENGTHS[int(radical_inverse(k, 3) * len(LENGTHS))]
        lr = first.lr * LR_SPAN ** (2 * radical_inverse(k, 2) - 1)
        settings: Options = {"lr": float(f"{lr:.3g}"), "epochs": max(1, round(first.epochs * length))}
        if "milestones" in names:
            settings["milestones"] = tuple(max(1, round(m * length)) for m in first.milestones)
        drawn.append(settings)
    return [
        Trial(row, number, settings, split)
        for split in splits
        for row in plan.runnable
        for number, settings in enumerate(drawn)
    ]


def radical_inverse(k: int, base: int) -> float:
    """The digits of k mirrored at the point: 1, 2, 3, 4 … → 0.5, 0.25, 0.75, 0.125 … in base 2."""
    value, scale = 0.0, 1.0
    while k:
        scale /= base
        value += scale * (k % base)
        k //= base
    return value


def automatic(plan: Plan, common: Mapping[str, Any], say: Callable[[str], None], splits: Splits = (None,)) -> int:
    """How many trials each row gets where nobody says: ``TRIALS``, or none, and why, where tuning would be refused."""
    from kdcache.data.prepare import prepare

    first = plan.runnable[0]
    options = {**common, **first.options}
    settings = build(Settings, {k: v for k, v in options.items() if k in {f.name for f in fields(Settings)}})
    own = Trial(first, 0, {}).options(plan.method)
    why = next((f"{n} differs between rows" for n in TUNED if len({r.options.get(n) for r in plan.runnable}) > 1), "")
    for split in splits if not why else ():
        here = replace(settings, **split_option(split))
        if "validation" not in prepare(here, own, lambda _: None, {"budget": 0}).data.splits:
            why = f"{'the cache' if split is None else split} has no validation clips"
            break
    if why:
        say(f"not tuned: {why}")
        return 0
    say(f"tune={TRIALS}: each row gets {TRIALS} trials of learning rate and length; tune=0 keeps what it has")
    return TRIALS


def refuse_tuned(plan: Plan) -> None:
    """``OptionError`` where rows differ in what would be tuned for each."""
    for name in TUNED:
        if len({row.options.get(name) for row in plan.runnable}) > 1:
            raise OptionError(f"{name} differs between rows, but tune chooses it for each: drop one of the two.")


def score(metrics: Mapping[str, Any], target: str, metric: str) -> float:
    """A trained trial's worth: the metric on validation clips, at the epoch that was best on them.

    Raises:
        OptionError: the run has no validation clips.
    """
    if metrics["selected_by"] != "validation":
        raise OptionError("tune chooses on validation clips, and this cache has none: mark some or drop validation=0.")
    return float(metrics["best@validation"]["validation"][target][metric])


def best(scores: Mapping[int, float]) -> int:
    """The trial with the highest score, the earliest of equals; NaN is a trial that failed.

    Raises:
        OptionError: all have failed.
    """
    usable = {number: value for number, value in sorted(scores.items()) if not math.isnan(value)}
    if not usable:
        raise OptionError("Every trial has failed.")
    return max(usable, key=lambda number: usable[number])
