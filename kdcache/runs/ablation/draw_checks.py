"""Draws that are refused before anything is trained: alike, of other splits, or reported after a choice on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kdcache.data.splits import TARGETS, named_splits, split_by
from kdcache.errors import OptionError
from kdcache.methods.contract import HELD_OUT, VALIDATION
from kdcache.runs.ablation.calls import TEST, Calls, column_of
from kdcache.runs.ablation.draws import Draws
from kdcache.runs.ablation.replicates import DRAW
from kdcache.store import Cache

SEEDS = 50
"""Of the order in which groups are held out: tried for a draw before its groups are said to be those of others."""
SPACING = 1000


def check_draws(calls: Calls) -> Calls:
    """Refuse draws that cannot be made or do not differ, before anything is trained.

    Returns:
        The calls. Where a draw holds the groups out that an earlier one has on a split column, and others are left,
        it has another ``validation_seed``, which depends on the draws before it alone.

    Raises:
        OptionError: a draw has no cache, other clips than the first or other splits, or two draws are the same.
        StoreError: a draw's cache is damaged.
    """
    if calls.draws is None and calls.own_caches:
        raise OptionError(f"shards={calls.common['shards']}: {DRAW} stands for the number of a draw: give draws.")
    if calls.draws is None or (calls.draws == 1 and not calls.own_caches):
        return calls
    if calls.own_caches:
        _check_caches(calls)
    draws = Draws(calls)
    _refuse_other_splits(draws)
    if calls.draws > 1:
        for column in calls.columns:
            seeds = {**draws.calls.validation_seeds, **_seeds(draws, column)}
            draws.calls = replace(draws.calls, validation_seeds=seeds)
        _refuse_repeats(draws)
    return draws.calls


def _check_caches(calls: Calls) -> None:
    """Each draw has a cache; all hold the same clips, or none of the first one's and the same classes (splits with
    files of their own); and their manifests name the same splits."""
    assert calls.draws is not None
    for draw in range(calls.draws):
        if not Path(calls.shards(draw)).is_dir():
            raise OptionError(
                f"shards={calls.common['shards']}: draw {draw} has no cache: extract {calls.shards(draw)}."
            )
    first = calls.shards(0)
    one = Cache(first).clips
    columns = dict.fromkeys(column_of(row, column) for row in calls.comparison.runnable for column in calls.columns)
    names = {by: _named(split_by(one, by)) for by in columns}
    ids = set(one["clip_id"])
    for draw in range(1, calls.draws):
        other = calls.shards(draw)
        two = Cache(other).clips
        others = set(two["clip_id"])
        if ids != others:
            if ids & others:
                raise OptionError(f"{other} lacks clips of {first}, or has more: the draws cannot be compared.")
            if any(set(one[t].dropna()) != set(two[t].dropna()) for t in TARGETS if t in one and t in two):
                raise OptionError(f"{other} holds other clips than {first}, of other classes: they cannot be compared.")
        for by in columns:
            if (found := _named(split_by(two, by))) != names[by]:
                raise OptionError(
                    f"{other} names {_listed(found)} clips in column {by}, and {first} {_listed(names[by])} clips: "
                    "name the same splits in all draws."
                )


def _named(rows: pd.DataFrame) -> list[str]:
    """The splits beside ``train`` that a manifest names."""
    found = named_splits(rows)
    return [] if found is None else [split for split in HELD_OUT if (found == split).any()]


def _listed(splits: Iterable[str]) -> str:
    return " and ".join(splits) or "no validation or test"


def _refuse_other_splits(draws: Draws) -> None:
    """Draws report and select on the same splits also where some of their clips are not cached."""
    for column in draws.calls.columns:
        for row in draws.calls.comparison.runnable:
            found: dict[int, list[str]] = {}
            for draw in draws.numbers:
                opened = draws.opened(row, column, draw, "final")
                if not opened.problem:
                    found[draw] = [split for split in HELD_OUT if split in opened.clips]
            for draw, splits in found.items():
                if splits != (usual := next(iter(found.values()))):
                    raise OptionError(
                        f"Row {row.name!r} has {_listed(splits)} clips in draw {draw}, and {_listed(usual)} clips in "
                        f"draw {next(iter(found))}: extract what is missing."
                    )


def _seeds(draws: Draws, column: str | None) -> dict[tuple[str | None, int], int]:
    """``validation_seed`` of the draws that would repeat an earlier one by their own number, and need not."""
    rows, found = draws.calls.comparison.runnable, dict[tuple[str | None, int], int]()
    seen: dict[str, set[str]] = {row.name: set() for row in rows}
    for draw in draws.numbers:
        for seed in (draw, *(SPACING * n + draw for n in range(1, SEEDS + 1))):
            digests = {row.name: draws.digest(row, column, draw, seed) for row in rows}
            again = [row for row in rows if digests[row.name] and digests[row.name] in seen[row.name]]
            if not again:
                break
            if not all(draws.holds_out(row, column, draw) for row in again):
                return found
        else:
            return found
        if seed != draw:
            found[column, draw] = seed
        for name, digest in digests.items():
            seen[name].add(digest)
    return found


def _refuse_repeats(draws: Draws) -> None:
    rows = draws.calls.comparison.runnable
    for column in draws.calls.columns:
        for row in rows:
            digests = [draws.digest(row, column, draw) for draw in draws.numbers]
            if all(digests) and len(set(digests)) < len(digests):  # a row that cannot be read fails, and says why
                where = f" on {column}" * bool(column) + f" in row {row.name!r}" * (len(rows) > 1)
                raise OptionError(f"draws={len(digests)}{_repeated(draws.calls, digests, where)}")


def _repeated(calls: Calls, digests: Sequence[str], where: str) -> str:
    """What is wrong with draws of which two have one digest, and what to do."""
    if len(set(digests)) > 1:
        draw = next(i for i, digest in enumerate(digests) if digest in digests[:i])
        mend = f"extract another cache for draw {draw}" if calls.own_caches else f"write {DRAW} in the name of shards"
        return (
            f": only {len(set(digests))} different draws were found{where} (draw {draw} has the clips, labels and "
            f"arrays of draw {digests.index(digests[draw])}): give draws={draw}, or {mend}."
        )
    why = "the runs hold no clips out by themselves" if calls.retrain is None else "final runs hold nothing out"
    cache, mend = f"shards={calls.common['shards']} is one cache", f"write {DRAW} in its name"
    if calls.own_caches:
        cache, mend = "the draws' caches hold the same arrays", "give each draw one of its own"
    return (
        f" would vary nothing{where}: every label is used (label_fraction=1, or label_seed is given), {why}, and "
        f"{cache}: {mend}, or leave draws out."
    )


def refuse_reported(calls: Calls, choosing: Sequence[int]) -> None:
    """Refuse a choice that all draws take where a draw that makes it validates on clips that another draw reports.

    Args:
        calls: as ``check_draws`` has returned them.
        choosing: draws on which the trials are trained.

    Raises:
        OptionError: there is such a clip: of the same id, or the only one of its source and span in either cache.
    """
    draws = Draws(calls)
    spans = {draw: _spans(calls.shards(draw)) for draw in draws.numbers} if calls.own_caches else {}

    def names(draw: int, clips: Iterable[str]) -> dict[str, str]:
        of_draw = spans.get(draw, {})
        return {name: clip for clip in clips for name in (f"clip {clip}", of_draw.get(clip, "")) if name}

    for column in calls.columns:
        for row in calls.comparison.runnable:
            for one in choosing:
                selects = names(one, draws.opened(row, column, one, "trial").clips.get(VALIDATION, ()))
                for other in draws.numbers:
                    tests = names(other, draws.opened(row, column, other, "final").clips.get(TEST, ()))
                    if common := sorted({selects[name] for name in selects.keys() & tests.keys()}):
                        raise OptionError(
                            f"tune_draws={len(choosing)}: what all draws take would be chosen on clips that are "
                            f"reported, for {len(common)} that validate in draw {one} test in draw {other}, such as "
                            f"{common[0]}: leave tune_draws out, so that each draw chooses by itself."
                        )


def _spans(shards: str) -> dict[str, str]:
    """Of each clip of a cache its source and span, where no other clip has the same."""
    clips = Cache(shards).clips
    columns = [name for name in ("source", "start_s", "stop_s") if name in clips]
    alone = clips[~clips.duplicated(columns, keep=False)]
    cells = zip(*(alone[name].astype(str) for name in columns), strict=True)
    return {clip: f"span {' '.join(map(str, cell))}" for clip, cell in zip(alone["clip_id"], cells, strict=True)}
