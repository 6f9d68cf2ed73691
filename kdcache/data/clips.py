"""A manifest's clips → examples of one clip each, with labels and splits: for early recognition and for fitting."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.data.splits import TARGETS, Examples, assign_splits, encode_examples
from kdcache.log import logger
from kdcache.methods.contract import HELD_OUT

ROLE = "clip"
GROUP_COLUMNS = ("group", "subject", "source", "clip_id")  # what clips may have in common; held out whole


def clips(rows: pd.DataFrame, usable: NDArray[np.bool_], share: float, quiet: bool = False, seed: int = 0) -> Examples:
    """Each clip is an example, named by its id; the same manifest always gives the same splits and order.

    Splits are those of the manifest (``train``; ``validation`` or ``val``; ``test``; others take no part). Where it
    has no validation clips, ``share`` of its labelled training clips is held out by group, subject or source, always
    the same ones: test clips must not choose anything. Of clips that come in pairs those that show
    the action are taken.

    Args:
        rows: manifest rows.
        usable: for each row whether it can be read; the others are counted, reported and left out.
        share: 0 to 1; 0 holds nothing out.
        quiet: log nothing.
        seed: of the order in which groups are held out.

    Raises:
        OptionError: nothing labelled to train or to test on.
    """
    table = clip_table(rows)
    table["split"] = split = assign_splits(table, share, GROUP_COLUMNS, quiet, seed)
    there = table[ROLE].isin(set(rows["clip_id"][usable].tolist()))
    lost = table.index[~there & split.isin(["train", *HELD_OUT])]
    if len(lost) and not quiet:
        shown = ", ".join(map(str, lost[:3])) + ("…" if len(lost) > 3 else "")
        logger.info("left out: %d of %d clips are not there (%s)", len(lost), len(table), shown)
    return encode_examples(table[there], [ROLE])


def clip_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a clip, sorted by id, empty cells as None; of clips that come in pairs those that show the action."""
    if "role" in rows:
        rows = rows[rows["role"].isin(["", "action"])]
    columns = [c for c in (*TARGETS, "split", *GROUP_COLUMNS) if c in rows]
    table = rows[columns].replace("", None).assign(**{ROLE: rows["clip_id"]})
    return table.set_index("clip_id", drop=False).rename_axis(None).sort_index(kind="stable")
