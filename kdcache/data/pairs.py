"""A cache's clips → pairs (x_{t-τ}, x_t) with labels and splits, as anticipation needs them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.data.splits import TARGETS, Examples, assign_splits, encode_examples
from kdcache.errors import ManifestError, OptionError
from kdcache.log import logger

ROLES = ("observed", "action")
GROUP_COLUMNS = ("group", "subject", "source")  # what pairs may have in common; held out whole
PAIRS_HELP = (
    "it needs clips tied by `pair`, one with `role` observed and one with action. Write these columns, or let a data "
    "set make them: epic55, epic100, rulstm and thumos14 (their option tau), jhmdb, class folders with observe=0.4."
)


def pairs(clips: pd.DataFrame, cached: NDArray[np.bool_], tau_s: float | None, share: float, seed: int = 0) -> Examples:
    """Join the rows of each pair.

    A pair takes part in training if both its clips are cached, in testing if the observed one is; the others are
    counted, reported and left out. A pair without a label is unlabelled. Splits are those of the manifest (``train``;
    ``validation`` or ``val``; ``test``); where it has no validation pairs, ``share`` of the labelled training pairs
    is held out, by group, subject or source, always the same ones: test pairs must not choose anything.

    Args:
        clips: manifest rows of the cache.
        cached: for each row whether its arrays are there.
        tau_s: which anticipation time to use where the manifest has several (column ``tau``).
        share: 0 to 1.
        seed: of the order in which groups are held out.

    Raises:
        OptionError: there are no pairs, or none to train or to test on, or several τ and none was chosen.
        ManifestError: two clips with one role in a pair, or a pair whose clips disagree on label or split.
    """
    table = _join(_of_tau(_with_roles(clips, cached), tau_s))
    if "split" in table and (table["split"].notna() & (table["split"] != "train")).all() and len(table):
        raise OptionError("No pair has split train: mark the ones to train on in the manifest's split column.")
    table["split"] = assign_splits(table, share, GROUP_COLUMNS, seed=seed)
    both = table["observed"].notna() & table["action"].notna()
    usable = both | (table["observed"].notna() & (table["split"] != "train"))
    if not usable.all():
        lost = table.index[~usable]
        shown = ", ".join(map(str, lost[:3])) + ("…" if len(lost) > 3 else "")
        logger.info("left out: %d of %d pairs have a clip that is not cached (%s)", len(lost), len(table), shown)
    return encode_examples(table[usable], ROLES)


def _with_roles(clips: pd.DataFrame, cached: NDArray[np.bool_]) -> pd.DataFrame:
    if "pair" not in clips or "role" not in clips:
        raise OptionError(f"The cache has no pairs: {PAIRS_HELP}")
    rows = clips.assign(cached=cached)[(clips["pair"] != "") & clips["role"].isin(ROLES)]
    if rows.empty:
        raise OptionError(f"The cache has no pairs: {PAIRS_HELP}")
    return rows


def _of_tau(rows: pd.DataFrame, tau_s: float | None) -> pd.DataFrame:
    """The rows of one anticipation time; rows without one belong to all."""
    if "tau" not in rows:
        if tau_s is not None:
            raise OptionError(f"tau_s={tau_s:g}: the cache's manifest has no column tau to choose by; leave tau_s out.")
        return rows
    known = pd.to_numeric(rows["tau"].replace("", None), errors="coerce")
    there = sorted(known.dropna().unique())
    listed = ", ".join(f"{t:g}" for t in there)
    if tau_s is None:
        if len(there) > 1:
            raise OptionError(
                f"The cache holds pairs for several anticipation times ({listed} s): choose with tau_s=…."
            )
        return rows
    if not np.isclose(there, tau_s).any():
        raise OptionError(
            f"tau_s={tau_s:g}: the cache holds pairs for {listed} s; extract those for {tau_s:g} s first."
        )
    return rows[known.isna() | np.isclose(known, tau_s)]


def _join(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a pair, sorted by name: clip of either role (NaN if not cached), labels, split, group."""
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
    for role in ROLES:
        of_side = rows[(rows["role"] == role) & rows["cached"]]
        table[role] = pd.Series(of_side["clip_id"].to_numpy(object), index=of_side["pair"]).reindex(table.index)
    return table.sort_index(kind="stable")
