"""Rows that are searched together: one learning-rate scale and one length for all of them, one space that is widened
for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdcache.methods.registry import knobs_of, teacher_of
from kdcache.methods.search import Knob, TeacherRun, of_row
from kdcache.options import shown
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.ablation.space import (
    FACTORS,
    LENGTH,
    Base,
    Dimension,
    Rates,
    RowGrid,
    base_of,
    exploring,
    length_dimension,
    rate_dimension,
)
from kdcache.runs.ablation.survey import RowSurvey
from kdcache.runs.ablation.trials import MILESTONES, ONE_STAGE, SearchedRow, Trial, option_value, rates_of
from kdcache.runs.config import SETTABLE
from kdcache.runs.presets import TableRow

Surveys = Mapping[tuple[str, str | None], RowSurvey]
"""Of each row's name and split column."""


@dataclass
class SearchGroup:
    """Rows of one method on one split column, or one teacher."""

    method: str
    split_column: str | None
    members: list[SearchedRow]
    dimensions: dict[Knob | str, Dimension] = field(default_factory=dict)
    is_teacher: bool = False

    def first(self, count: int) -> list[Trial]:
        """Of each row's ``count`` trials those that come first: its own settings, then points at each length in turn.
        Rows that do not train get all of theirs."""
        made = list[Trial]()
        for s in self.members:
            made.append(s.own())
            if s.trains:
                for number in range(1, exploring(count)):
                    made += s.more(1, **{LENGTH: FACTORS[number % len(FACTORS)]})
            else:
                made += s.more(count - 1)
        return made

    def rest(self, count: int) -> list[Trial]:
        """The others of ``count``, at the length that the first have told, as far as the grid has more there."""
        length, made = self.length, list[Trial]()
        for s in self.members if length is not None else ():
            if s.trains:
                made += s.more(count - len(s.trials), **{LENGTH: length})
                made += s.more(count - len(s.trials))
        return made

    def widened(self, count: int, most: int) -> list[Trial]:
        """Further trials where chosen values lie on edges: each such dimension gets one more value, and every row half
        of ``count`` more trials, which take the new values of its dimensions in turn, at the common length as far as
        there are others. None where all that may be widened has been."""
        length = self.length  # from before these trials
        on_edge = {(name, side) for s in self.members if (best := self.chosen(s)) for name, side in s.edges(best)}
        new: list[tuple[Dimension, Any]] = []
        for name, side in sorted(on_edge):
            dimension = next(d for s in self.members for d in s.grid.dimensions if d.knob.option == name)
            value = dimension.widen(side, most)
            if value is not None:
                new.append((dimension, value))
        if not new:
            return []
        made = list[Trial]()
        for s in self.members:
            at_length = {LENGTH: length} if s.trains else {}
            own = [{d.knob.option: value} for d, value in new if any(d is its for its in s.grid.dimensions)] or [{}]
            for number in range(math.ceil(count / 2)):
                fixed = own[number % len(own)]
                made += s.more(1, **at_length | fixed) or s.more(1, **fixed)
        return made

    @property
    def length(self) -> float | None:
        """The factor of the base length that all rows take: that of the best mean over rows of each row's best score.

        Lengths count at which the most rows have a trial that succeeded; the shortest of equals. None where no row
        trains.
        """
        lengths = sorted({t.length for s in self.members for t in s.trials if t.length is not None})
        means: dict[float, tuple[int, float]] = {}
        for length in lengths:
            best = [(s, s.best(length)) for s in self.members]
            scores = [s.scores[t.number] for s, t in best if t is not None and t.length is not None]
            means[length] = (len(scores), sum(scores) / len(scores) if scores else -math.inf)
        return max(lengths, key=lambda length: (*means[length], -length), default=None)

    def chosen(self, searched: SearchedRow) -> Trial | None:
        """The trial of a row whose settings it takes; None where none succeeded at the common length."""
        return searched.best(self.length)

    def described(self) -> dict[str, Any]:
        """What was searched, as plain data."""
        name = self.members[0].grid.base.rates.name
        return {
            "method": self.method,
            "split_column": self.split_column,
            "rows": [s.row.name for s in self.members],
            "length": self.length,
            "values": {name(d.knob.option): d.values for d in self.dimensions.values()},
            "widened": {name(d.knob.option): d.widened for d in self.dimensions.values() if any(d.widened.values())},
        }


def groups_of_rows(
    calls: Calls, surveyed: Surveys, min_steps: int, fixed: Mapping[tuple[str, str | None], Mapping[str, Any]]
) -> list[SearchGroup]:
    """The rows of each method on each split column; ``fixed`` has what was chosen for a row's teacher."""
    found: list[SearchGroup] = []
    rows = calls.comparison.runnable
    for column in calls.columns:
        for method in dict.fromkeys(calls.comparison.method_of(row) for row in rows):
            mine = [row for row in rows if calls.comparison.method_of(row) == method]
            usable = [row for row in mine if not surveyed[row.name, column].problem]
            if usable:
                every = [surveyed[row.name, c] for row in usable for c in calls.columns]  # one length on all of them
                first = surveyed[usable[0].name, column]
                base, common = _common(rates_of(method), first, every, min_steps)
                made = SearchGroup(method, column, [], dict(common))
                for row in usable:
                    of_teacher = dict(fixed.get((row.name, column), {}))
                    made.members.append(_searched(made, row, surveyed[row.name, column], base, of_teacher))
                found.append(made)
    return found


def groups_of_teachers(
    calls: Calls, surveyed: Surveys, min_steps: int, survey_row: Callable[[TableRow, str | None], RowSurvey]
) -> tuple[list[SearchGroup], dict[tuple[str, str | None], SearchGroup]]:
    """A group for each teacher that rows need and do not set themselves, and which row has which.

    Args:
        calls: of the comparison.
        surveyed: of its rows.
        min_steps: as for rows.
        survey_row: ``(row, split column)`` → its survey.
    """
    found: dict[tuple[str, str | None, str], tuple[TableRow, list[str]]] = {}
    for column in calls.columns:
        for row in calls.comparison.runnable:
            method = calls.comparison.method_of(row)
            teacher, known = teacher_of(method), surveyed[row.name, column]
            if teacher is None or known.problem or {teacher.lr, teacher.epochs, teacher.milestones} & {*row.options}:
                continue
            options = _options_of_teacher(teacher, row, known.options)
            if options is not None:
                key = (method, column, ", ".join(f"{k}={shown(v)}" for k, v in sorted(options.items())))
                found.setdefault(key, (TableRow("", options, {}, method=method, own=tuple(options)), []))[1].append(
                    row.name
                )
    groups, of_row = list[SearchGroup](), dict[tuple[str, str | None], SearchGroup]()
    for (method, column, _), (made, names) in found.items():
        row = replace(
            made, name=f"teacher of {', '.join(names)}", slug=f"teacher-of-{calls.comparison.row(names[0]).slug}"
        )
        known = survey_row(row, column)
        teacher = teacher_of(method)
        assert teacher is not None
        rates = Rates(teacher.lr, teacher.epochs, teacher.milestones)
        if known.problem:
            continue  # its rows fail for the same reason, and say so
        base, common = _common(rates, known, [known], min_steps)
        group = SearchGroup(method, column, [], dict(common), is_teacher=True)
        group.members.append(SearchedRow(row, column, known, RowGrid(base, list(common.values()))))
        groups.append(group)
        of_row |= {(name, column): group for name in names}
    return groups, of_row


def _options_of_teacher(teacher: TeacherRun, row: TableRow, resolved: Any) -> dict[str, Any] | None:
    alone = teacher.alone(resolved)
    if alone is None:
        return None
    names = (*ONE_STAGE, MILESTONES, *teacher.depends, *SETTABLE)
    kept = {name: value for name, value in row.options.items() if name in names}
    return {**kept, **alone, teacher.seed: None}  # its trials have seeds of their own


def _common(
    rates: Rates, first: RowSurvey, every: Sequence[RowSurvey], min_steps: int
) -> tuple[Base, dict[Knob | str, Dimension]]:
    """The base of some rows, and the dimensions that all of them have."""
    steps = [(option_value(known.options, rates.length), known.steps) for known in every]
    milestones = () if rates.milestones is None else option_value(first.options, rates.milestones)
    lr, length = (option_value(first.options, name) for name in (rates.lr, rates.length))
    base, shorter = base_of(rates, lr, length, milestones, steps, min_steps)
    return base, {"lr": rate_dimension(lr), "length": length_dimension(shorter)}


def _searched(group: SearchGroup, row: TableRow, surveyed: RowSurvey, base: Base, fixed: dict[str, Any]) -> SearchedRow:
    knobs = of_row(knobs_of(group.method), surveyed.options, frozenset(row.own))
    for knob in knobs:
        group.dimensions.setdefault(knob, Dimension(knob))
    common = [group.dimensions["lr"], group.dimensions["length"]] if surveyed.steps else []
    return SearchedRow(
        row, group.split_column, surveyed, RowGrid(base, [*common, *(group.dimensions[k] for k in knobs)]), fixed
    )
