"""A cache's clips → pairs (x_{t-τ}, x_t) with labels and splits, as anticipation needs them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from kdcache.errors import ManifestError, OptionError
from kdcache.methods.contract import HELD_OUT, UNLABELLED, Samples

SIDES = ("observed", "action")
TARGETS = ("label", "verb", "noun")
SPLITS = {"val": "validation", "valid": "validation"}  # other names for a split
SHARE = 0.2  # of the labelled pairs, held out where a manifest has no split
HOW = (
    "it needs clips tied by `pair`, one with `role` observed and one with action; "
    "`kdcache manifest DATASET --set tau=1` makes them."
)


@dataclass(frozen=True)
class Clips:
    """The examples of each split, the clips that their rows number, and the manifest's label of every class."""

    splits: dict[str, Samples]
    clip_ids: list[str]
    classes: dict[str, list[int]]


def pairs(clips: pd.DataFrame, cached: NDArray[np.bool_], tau: float | None, say: Callable[[str], None]) -> Clips:
    """Join the rows of each pair.

    A pair takes part in training if both its clips are cached, in testing if the observed one is; the others are
    counted, reported and left out. A pair without a label is unlabelled. Splits are those of the manifest
    (``train``; ``validation`` or ``val``; ``test``); where it has none, a fifth of the labelled pairs is held out by
    group, subject or source, always the same one.

    Args:
        clips: manifest rows of the cache.
        cached: for each row whether its arrays are there.
        tau: which anticipation time to use where the manifest has several (column ``tau``).
        say: takes a sentence for each thing worth knowing.

    Raises:
        OptionError: there are no pairs, or none to train or to test on, or several τ and none was chosen.
        ManifestError: two clips with one role in a pair, or a pair whose clips disagree on label or split.
    """
    table = _join(_of_tau(_with_roles(clips, cached), tau))
    table["split"] = _splits(table, say)
    both = table["observed"].notna() & table["action"].notna()
    usable = both | (table["observed"].notna() & (table["split"] != "train"))
    if not usable.all():
        lost = table.index[~usable]
        shown = ", ".join(map(str, lost[:3])) + ("…" if len(lost) > 3 else "")
        say(f"left out: {len(lost)} of {len(table)} pairs have a clip that is not cached ({shown})")
    return _number(table[usable])


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


def _splits(table: pd.DataFrame, say: Callable[[str], None]) -> pd.Series[str]:
    """The split of each pair, from the manifest or by holding out groups."""
    if "split" in table and table["split"].notna().any():
        split = pd.Series([SPLITS.get(s, s) for s in table["split"].fillna("")], index=table.index, dtype=str)
        if split.isin(HELD_OUT).any():
            if not (split == "train").any():
                raise OptionError("No pair has split train: mark the ones to train on in the manifest's split column.")
            return split
    labelled = table[[t for t in TARGETS if t in table]].notna().any(axis=1)
    by = next((c for c in ("group", "subject", "source") if c in table and table[c][labelled].nunique() > 1), None)
    if by is None:
        raise OptionError(
            "The cache's pairs name no split and come from one source: add a split column to the manifest."
        )
    groups = sorted(table[by][labelled].dropna().unique(), key=lambda g: (zlib.crc32(str(g).encode()), str(g)))
    sizes = np.cumsum([int((labelled & (table[by] == g)).sum()) for g in groups])
    count = min(int(np.searchsorted(sizes, SHARE * sizes[-1])) + 1, len(groups) - 1)
    out = table[by].isin(groups[:count])
    shown = ", ".join(map(str, groups[: min(count, 3)])) + ("…" if count > 3 else "")
    held, total = int((out & labelled).sum()), int(labelled.sum())
    say(f"validation: the manifest holds nothing out, so {held} of {total} labelled pairs are ({by} {shown})")
    return pd.Series(np.where(out, "validation", "train"), index=table.index, dtype=str)


def _number(table: pd.DataFrame) -> Clips:
    """Clips as rows and labels as class indices."""
    classes = {
        t: sorted(int(v) for v in table[t].dropna().unique()) for t in TARGETS if t in table and table[t].notna().any()
    }
    if not classes:
        raise OptionError("No pair has a label: anticipation needs a label, verb or noun column in the manifest.")
    clip_ids = sorted({str(c) for side in SIDES for c in table[side].dropna()})
    row_of = {clip: row for row, clip in enumerate(clip_ids)}
    splits: dict[str, Samples] = {}
    for split, part in table.groupby("split", sort=True):
        rows = {s: torch.tensor([row_of.get(c, -1) if isinstance(c, str) else -1 for c in part[s]]) for s in SIDES}
        labels = {t: _indices(part[t], classes[t]) for t in classes}
        splits[str(split)] = Samples([str(name) for name in part.index], rows, labels)
    _check(splits, classes)
    return Clips(splits, clip_ids, classes)


def _indices(values: pd.Series[int], classes: list[int]) -> torch.Tensor:
    there = values.notna().to_numpy()
    index = np.full(len(values), UNLABELLED)
    index[there] = np.searchsorted(classes, values[there].to_numpy(np.int64))
    return torch.from_numpy(index)


def _check(splits: dict[str, Samples], classes: dict[str, list[int]]) -> None:
    """There must be labelled pairs to train on, and labelled pairs to test on."""
    labelled = {split for split, s in splits.items() if any((s.labels[t] != UNLABELLED).any() for t in classes)}
    for wanted in (("train",), HELD_OUT):
        if not labelled.intersection(wanted):
            name = " or ".join(wanted)
            raise OptionError(f"No complete pair of split {name} has a label: extract its clips or check the manifest.")


def held_out(splits: dict[str, Samples]) -> str:
    """The split on which a run is judged: validation, or test where there is none."""
    return next((s for s in HELD_OUT if s in splits), HELD_OUT[0])
