"""A cache's clips → pairs (x_{t-τ}, x_t) with labels and splits, as anticipation needs them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.data.splits import TARGETS, Clips, hold_out, named_splits, number
from kdcache.errors import ManifestError, OptionError
from kdcache.methods.contract import HELD_OUT

SIDES = ("observed", "action")
TOGETHER = ("group", "subject", "source")  # what pairs may have in common; held out whole
HOW = (
    "it needs clips tied by `pair`, one with `role` observed and one with action; "
    "`kdcache manifest DATASET --set tau=1` makes them."
)


def pairs(
    clips: pd.DataFrame, cached: NDArray[np.bool_], tau: float | None, share: float, say: Callable[[str], None]
) -> Clips:
    """Join the rows of each pair.

    A pair takes part in training if both its clips are cached, in testing if the observed one is; the others are
    counted, reported and left out. A pair without a label is unlabelled. Splits are those of the manifest
    (``train``; ``validation`` or ``val``; ``test``); where it holds nothing out, ``share`` of the labelled pairs is,
    by group, subject or source, always the same ones.

    Args:
        clips: manifest rows of the cache.
        cached: for each row whether its arrays are there.
        tau: which anticipation time to use where the manifest has several (column ``tau``).
        share: 0 to 1.
        say: takes a sentence for each thing worth knowing.

    Raises:
        OptionError: there are no pairs, or none to train or to test on, or several τ and none was chosen.
        ManifestError: two clips with one role in a pair, or a pair whose clips disagree on label or split.
    """
    table = _join(_of_tau(_with_roles(clips, cached), tau))
    table["split"] = _splits(table, share, say)
    both = table["observed"].notna() & table["action"].notna()
    usable = both | (table["observed"].notna() & (table["split"] != "train"))
    if not usable.all():
        lost = table.index[~usable]
        shown = ", ".join(map(str, lost[:3])) + ("…" if len(lost) > 3 else "")
        say(f"left out: {len(lost)} of {len(table)} pairs have a clip that is not cached ({shown})")
    return number(table[usable], SIDES)


def _with_roles(clips: pd.DataFrame, cached: NDArray[np.bool_]) -> pd.DataFrame:
    if "pair" not in clips or "role" not in clips:
        raise OptionError(f"The cache has no pairs: {HOW}")
    rows = clips.assign(cached=cached)[(clips["pair"] != "") & clips["role"].isin(SIDES)]
    if rows.empty:
        raise OptionError(f"The cache has no pairs: {HOW}")
    return rows


def _of_tau(rows: pd.DataFrame, tau: float | None) -> pd.DataFrame:
    """The rows of one anticipation time; rows without one belong to all."""
    if "tau" not in rows:
        if tau is not None:
            raise OptionError(f"tau={tau:g}: the cache's manifest has no column tau to choose by; leave tau out.")
        return rows
    known = pd.to_numeric(rows["tau"].replace("", None), errors="coerce")
    there = sorted(known.dropna().unique())
    listed = ", ".join(f"{t:g}" for t in there)
    if tau is None:
        if len(there) > 1:
            raise OptionError(f"The cache holds pairs for several anticipation times ({listed} s): choose with tau=….")
        return rows
    if not np.isclose(there, tau).any():
        raise OptionError(f"tau={tau:g}: the cache holds pairs for {listed} s; extract those for {tau:g} s first.")
    return rows[known.isna() | np.isclose(known, tau)]


def _join(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a pair, sorted by name: clip of either side (NaN if not cached), labels, split, group."""
    rows = rows.sort_values("role", key=lambda r: r != "action", kind="stable")  # an action's label comes first
    twice = rows[rows.duplicated(["pair", "role"])]
    problems = [f"clip {c}: pair {p} has another {r} clip" for c, p, r in twice[["clip_id", "pair", "role"]].to_numpy()]
    columns = [c for c in (*TARGETS, "split", "group", "subject", "source") if c in rows]
    facts = rows[["pair", *columns]].replace("", None)
    for column in columns:
        if column in (*TARGETS, "split"):
            kinds = facts.groupby("pair", sort=False)[column].nunique()
            problems += [f"pair {pair}: its clips disagree on {column}" for pair in kinds.index[kinds > 1]]
    if problems:
        raise ManifestError("the cache's manifest", problems)
    table = facts.groupby("pair", sort=False).first()
    for side in SIDES:
        of_side = rows[(rows["role"] == side) & rows["cached"]]
        table[side] = pd.Series(of_side["clip_id"].to_numpy(object), index=of_side["pair"]).reindex(table.index)
    return table.sort_index(kind="stable")


def _splits(table: pd.DataFrame, share: float, say: Callable[[str], None]) -> pd.Series[str]:
    """The split of each pair, from the manifest or by holding out groups."""
    split = named_splits(table)
    if split is None:
        split = pd.Series("train", index=table.index, dtype=str)
    if not (split == "train").any():
        raise OptionError("No pair has split train: mark the ones to train on in the manifest's split column.")
    if split.isin(HELD_OUT).any():
        return split
    if not share:
        raise OptionError("validation=0 leaves nothing to test on: the manifest has neither validation nor test pairs.")
    return split.mask(hold_out(table, split == "train", share, TOGETHER, say), "validation")
