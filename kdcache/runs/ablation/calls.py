"""What ``train`` is called with for the runs and the trials of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kdcache.data.splits import named_splits, split_by
from kdcache.errors import OptionError
from kdcache.methods.contract import VALIDATION
from kdcache.methods.registry import method, teacher_of
from kdcache.options import build
from kdcache.runs.ablation.replicates import DRAW, SplitColumns, draw_numbers, shards_of, split_option
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.config import RunSettings
from kdcache.runs.presets import TableRow
from kdcache.store import Cache

Phase = Literal["trial", "final"]
TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What all runs of a comparison have in common, and how they differ."""

    comparison: Comparison
    common: Mapping[str, Any]
    """Method (where a row has no other), shards, device, precision, stream."""
    columns: SplitColumns = (None,)
    draws: int | None = None
    one_teacher: bool = False
    """Teachers have a seed of their own, 0: a draw has one, whatever the seed of the run."""
    retrain: float | None = None
    """Share of the training clips that trials hold out, where final runs train on all of them; None: both hold the
    same clips out."""
    validation_seeds: Mapping[tuple[str | None, int], int] = field(default_factory=dict)
    """Of split column and draw, where it is not the draw's number; see ``draw_checks.check_draws``."""
    _known: dict[str, set[str]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, row: TableRow, column: str | None, draw: int | None, phase: Phase, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of ``train``, less the seed; ``settings`` go on top of the row's options."""
        call = {**self.common, "shards": self.shards(draw), "method": self.comparison.method_of(row)}
        if draw is not None:
            call["validation_seed"] = self.validation_seeds.get((column, draw), draw)
            if row.options.get("label_fraction", 1.0) < 1:
                call["label_seed"] = draw
        if self.one_teacher and (teacher := teacher_of(call["method"])) is not None:
            call[teacher.seed] = 0
        call |= {**row.options, **split_option(column), **settings}
        return call | self._held_out(row, column, phase)

    def shards(self, draw: int | None) -> str:
        """Folder of a draw's cache."""
        return shards_of(self.common["shards"], draw)

    def shared(self, draw: int | None) -> str:
        """Subfolder of the trained stages that runs share: caches of several draws may look alike and hold others."""
        return f"draw-{draw}" if self.own_caches else ""

    @property
    def own_caches(self) -> bool:
        """Whether each draw has a cache of its own."""
        return DRAW in str(self.common["shards"])

    def settings(self, call: Mapping[str, Any]) -> tuple[RunSettings, Any]:
        """What a call comes to: settings of the run and options of the method."""
        known = {each.name for each in fields(RunSettings)}
        of_run = {name: value for name, value in call.items() if name in known}
        made = build(method(call["method"]).Options, {n: v for n, v in call.items() if n not in known})
        return build(RunSettings, of_run), made.completed() if hasattr(made, "completed") else made

    def _held_out(self, row: TableRow, column: str | None, phase: Phase) -> dict[str, Any]:
        """With ``retrain``: trials select on clips that final runs train on, which hold nothing out."""
        if self.retrain is None:
            return {}
        named = self.named(row, column)
        share = {"validation": row.options.get("validation") or self.retrain}
        if TEST not in named:
            return {"validation_as": TEST, **(share if phase == "trial" else {"validation": 0.0})}
        if VALIDATION in named:
            return {} if phase == "trial" else {"validation_as": "train", "validation": 0.0}
        return share if phase == "trial" else {"validation": 0.0}

    def named(self, row: TableRow, column: str | None) -> set[str]:
        """The splits that the manifest names, the same in all draws."""
        by = column_of(row, column)
        if by not in self._known:
            found = named_splits(split_by(Cache(self.shards(0)).clips, by))
            self._known[by] = set() if found is None else set(found)
        return self._known[by]

    def check(self) -> None:
        """Refuse ``retrain`` that leaves nothing to report, before anything is trained.

        Raises:
            OptionError: ``retrain`` leaves nothing to report, or nothing on which a row could stop early.
        """
        if self.retrain is not None:
            for row in self.comparison.runnable:
                for column in self.columns:
                    if not {TEST, VALIDATION} & self.named(row, column):
                        raise OptionError(
                            "retrain trains on all training clips, and the manifest names no test or validation clips "
                            "to report on: mark some, or leave retrain out."
                        )
                final = self(row, self.columns[0], draw_numbers(self.draws)[0], "final", {})
                if getattr(self.settings(final)[1], "patience", 0):
                    raise OptionError(
                        f"retrain holds no clips out in the end, on which {row.name!r} could stop: set patience=0."
                    )


def column_of(row: TableRow, column: str | None) -> str:
    """The manifest column by which a row's clips are split."""
    return column or str(row.options.get("split_column", RunSettings.split_column))
