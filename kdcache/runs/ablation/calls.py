"""What ``train`` is called with for the runs and the trials of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from kdcache.data.splits import TARGETS, named_splits, split_by
from kdcache.errors import OptionError
from kdcache.methods.contract import VALIDATION
from kdcache.methods.registry import method, teacher_of
from kdcache.options import build
from kdcache.runs.ablation.replicates import DRAW, SplitColumns, draw_numbers, shards_of, split_option
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.config import RunSettings
from kdcache.runs.prepare import prepare
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
    _known: dict[str, set[str]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, row: TableRow, column: str | None, draw: int | None, phase: Phase, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of ``train``, less the seed; ``settings`` go on top of the row's options."""
        call = {**self.common, "shards": self.shards(draw), "method": self.comparison.method_of(row)}
        if draw is not None:
            call["validation_seed"] = draw
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
        named = self._named(row, column)
        share = {"validation": row.options.get("validation") or self.retrain}
        if TEST not in named:
            return {"validation_as": TEST, **(share if phase == "trial" else {"validation": 0.0})}
        if VALIDATION in named:
            return {} if phase == "trial" else {"validation_as": "train", "validation": 0.0}
        return share if phase == "trial" else {"validation": 0.0}

    def _named(self, row: TableRow, column: str | None) -> set[str]:
        """The splits that the manifest names."""
        by = column_of(row, column)
        if by not in self._known:
            found = named_splits(split_by(Cache(self.shards(0)).clips, by))
            self._known[by] = set() if found is None else set(found)
        return self._known[by]

    def check(self) -> None:
        """Refuse draws that cannot be made before anything is trained.

        Raises:
            OptionError: a draw has no cache or other clips than the first, draws would vary nothing, or ``retrain``
                leaves nothing to report.
            StoreError: a draw's cache is damaged.
        """
        if self.draws is None and self.own_caches:
            raise OptionError(f"shards={self.common['shards']}: {DRAW} stands for the number of a draw: give draws.")
        if self.draws is not None:
            self._check_draws(self.draws)
        if self.retrain is not None:
            for row in self.comparison.runnable:
                for column in self.columns:
                    if not {TEST, VALIDATION} & self._named(row, column):
                        raise OptionError(
                            "retrain trains on all training clips, and the manifest names no test or validation clips "
                            "to report on: mark some, or leave retrain out."
                        )
                final = self(row, self.columns[0], draw_numbers(self.draws)[0], "final", {})
                if getattr(self.settings(final)[1], "patience", 0):
                    raise OptionError(
                        f"retrain holds no clips out in the end, on which {row.name!r} could stop: set patience=0."
                    )

    def _check_same_clips(self, draws: int) -> None:
        """Caches of draws hold the same clips, or none of the first one's and the same classes: splits with files of
        their own."""
        first = self.shards(0)
        one = Cache(first).clips
        ids = set(one["clip_id"])
        for draw in range(1, draws):
            other = self.shards(draw)
            two = Cache(other).clips
            others = set(two["clip_id"])
            if ids == others:
                continue
            if ids & others:
                raise OptionError(f"{other} lacks clips of {first}, or has more: the draws cannot be compared.")
            if any(set(one[t].dropna()) != set(two[t].dropna()) for t in TARGETS if t in one and t in two):
                raise OptionError(f"{other} holds other clips than {first}, of other classes: they cannot be compared.")

    def _check_draws(self, draws: int) -> None:
        if self.own_caches:
            for draw in range(draws):
                path = self.shards(draw)
                if not Path(path).is_dir():
                    raise OptionError(f"shards={self.common['shards']}: draw {draw} has no cache: extract {path}.")
            self._check_same_clips(draws)
            return
        rows = self.comparison.runnable
        if draws == 1 or any(r.options.get("label_fraction", 1.0) < 1 and "label_seed" not in r.options for r in rows):
            return
        if self.retrain is None and len({self._samples(rows[0], draw) for draw in draw_numbers(draws)}) > 1:
            return
        why = "the runs hold no clips out by themselves" if self.retrain is None else "final runs hold nothing out"
        raise OptionError(
            f"draws={draws} would vary nothing: every label is used (label_fraction=1, or label_seed is given), {why}, "
            f"and shards={self.common['shards']} is one cache: write {DRAW} in its name, or leave draws out."
        )

    def _samples(self, row: TableRow, draw: int | None) -> str:
        """Digest of the examples of a row's runs."""
        settings, options = self.settings(self(row, self.columns[0], draw, "final", {}))
        return str(prepare(settings, options, {"budget": 0}, training=False).resolved["samples"])


def column_of(row: TableRow, column: str | None) -> str:
    """The manifest column by which a row's clips are split."""
    return column or str(row.options.get("split_column", RunSettings.split_column))
