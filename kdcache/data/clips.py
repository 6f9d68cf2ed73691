"""A manifest's clips → examples of one clip each, with labels and splits: for early recognition and for fitting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.data.splits import TARGETS, Clips, hold_out, named_splits, number
from kdcache.errors import OptionError
from kdcache.methods.contract import HELD_OUT

SIDE = "clip"
TOGETHER = ("group", "subject", "source", "clip_id")  # what clips may have in common; held out whole


def clips(rows: pd.DataFrame, usable: NDArray[np.bool_], share: float, say: Callable[[str], None]) -> Clips:
    """Each clip is an example, named by its id; the same manifest always gives the same splits and order.

    Splits are those of the manifest (``train``; ``validation`` or ``val``; ``test``; others take no part). Where it
    has no validation clips, ``share`` of its labelled training clips is held out by group, subject or source, always
    the same ones, so that nobody is tempted to choose on the test clips. Of clips that come in pairs those that show
    the action are taken.

    Args:
        rows: manifest rows.
        usable: for each row whether it can be read; the others are counted, reported and left out.
        share: 0 to 1; 0 holds nothing out.
        say: takes a sentence for each thing worth knowing.

    Raises:
        OptionError: nothing labelled to train or to test on.
    """
    table = _table(rows)
    split = named_splits(table)
    if split is None:
        split = pd.Series("train", index=table.index, dtype=str)
    if share and not (split == "validation").any():
        split = split.mask(hold_out(table, split == "train", share, TOGETHER, say), "validation")
    elif not split.isin(HELD_OUT).any():
        raise OptionError("validation=0 leaves nothing to test on: the manifest has neither validation nor test clips.")
    table["split"] = split
    there = table[SIDE].isin(set(rows["clip_id"][usable]))
    lost = table.index[~there & split.isin(["train", *HELD_OUT])]
    if len(lost):
        shown = ", ".join(map(str, lost[:3])) + ("…" if len(lost) > 3 else "")
        say(f"left out: {len(lost)} of {len(table)} clips are not there ({shown})")
    return number(table[there], [SIDE])


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a clip, sorted by id, empty cells as None."""
    if "role" in rows:
        rows = rows[rows["role"].isin(["", "action"])]
    columns = [c for c in (*TARGETS, "split", *TOGETHER) if c in rows]
    table = rows[columns].replace("", None).assign(**{SIDE: rows["clip_id"]})
    return table.set_index("clip_id", drop=False).rename_axis(None).sort_index(kind="stable")
