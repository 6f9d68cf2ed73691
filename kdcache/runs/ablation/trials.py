"""The trials of a comparison: which there are, and the trainings of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError
from kdcache.methods import method as method_module
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.pool import Job
from kdcache.runs.ablation.replicates import TRIAL_SEED, row_folder
from kdcache.runs.ablation.space import LENGTH, LR, OF_ONE_STAGE, OF_STAGES, Rates, RowGrid
from kdcache.runs.ablation.survey import RowSurvey
from kdcache.runs.presets import TableRow

ONE_STAGE = ("lr", "epochs")
STAGES = ("lr_factor", "length")
MILESTONES = "milestones"


@dataclass(frozen=True)
class Trial:
    """One trial of one row on one split column."""

    row: TableRow
    number: int
    point: dict[str, Any]
    """Dimension → value; of trial 0, the row's own settings, those that these amount to."""
    settings: dict[str, Any]
    """On top of the row's options."""
    split_column: str | None = None

    @property
    def length(self) -> float | None:
        """Factor of the base length; None of a row that does not train."""
        return self.point.get(LENGTH)

    def jobs(self, calls: Calls, out: Path, seeds: int, draws: Sequence[int | None]) -> list[Job]:
        """Its trainings: with each seed on each of these draws."""
        made = []
        name = ", ".join(filter(None, [self.row.name, self.split_column]))
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]
        folder = row_folder(out, self.row.slug, self.split_column) / "tuning" / f"trial-{digest}"
        for draw in draws:
            call = calls(self.row, self.split_column, draw, "trial", self.settings)
            of_draw = "" if draw is None else f"draw {draw}, "
            for seed in range(TRIAL_SEED, TRIAL_SEED + seeds):
                made.append(
                    Job(
                        f"{name}, trial {self.number}, {of_draw}seed {seed}",
                        (folder if draw is None else folder / f"draw-{draw}") / f"seed-{seed}",
                        {**call, "seed": seed, "keep_stages": False},
                        calls.shared(draw),
                    )
                )
        return made


@dataclass
class SearchedRow:
    """A row on a split column, its grid, and its trials as far as they have been drawn.

    ``fixed`` is set in every trial: what was chosen for its teacher.
    """

    row: TableRow
    split_column: str | None
    surveyed: RowSurvey
    grid: RowGrid
    fixed: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether it takes optimiser steps, and so has a rate and a length; nearest neighbours have none."""
        return bool(self.surveyed.steps)

    def own(self) -> Trial:
        """Trial 0: the row as it is, with the common base length."""
        base, options = self.grid.base, self.surveyed.options
        point: dict[str, Any] = {d.knob.option: getattr(options, d.knob.option, None) for d in self.grid.dimensions}
        settings: dict[str, Any] = {}
        if self.trains:
            point |= {LR: option_value(options, base.rates.lr), LENGTH: 1.0}
            wanted = base.settings({LENGTH: 1.0})
            if any(option_value(options, name) != value for name, value in wanted.items()):
                settings = wanted
        self.grid.reserve(self.grid.settings(point))
        return self._add(point, settings)

    def more(self, count: int, **fixed: Any) -> list[Trial]:
        """``count`` further trials, or as many as the grid still has."""
        return [self._add(point, self.grid.settings(point)) for point in self.grid.draw(count, **fixed)]

    def _add(self, point: dict[str, Any], settings: dict[str, Any]) -> Trial:
        made = Trial(self.row, len(self.trials), point, {**self.fixed, **settings}, self.split_column)
        self.trials.append(made)
        return made

    def best(self, length: float | None) -> Trial | None:
        """The trial with the highest score at a length, the earliest of equals; None where all have failed."""
        usable = [t for t in self.trials if t.number in self.scores and (t.length is None or t.length == length)]
        return max(usable, key=lambda t: (self.scores[t.number], -t.number), default=None)

    def edges(self, trial: Trial) -> list[tuple[str, str]]:
        """Dimension and side of each value of a trial that lies on the edge of the grid."""
        found = ((d.knob.option, d.edge(trial.point[d.knob.option])) for d in self.grid.dimensions)
        return [(name, side) for name, side in found if side]


def option_value(options: Any, name: str) -> Any:
    """An option; of a teacher, where it is left open, the student's of that name."""
    value = getattr(options, name)
    return getattr(options, name.removeprefix("teacher_")) if value is None else value


def rates_of(method: str) -> Rates:
    """The options of learning rate and length that a method has.

    Raises:
        OptionError: it has none.
    """
    names = set(method_module(method).Options.__dataclass_fields__)
    if names.issuperset(ONE_STAGE):
        return replace(OF_ONE_STAGE, milestones=MILESTONES if MILESTONES in names else None)
    if names.issuperset(STAGES):
        return OF_STAGES
    raise OptionError(
        f"tune: {method} has no lr and epochs to tune, nor lr_factor and length of several stages; leave tune out."
    )
