"""What every kind of example needs: its split, labels as class indices, and something held out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from kdcache.errors import OptionError, unknown
from kdcache.methods.contract import UNLABELLED, Samples
from kdcache.splits import HELD_OUT, NAMES, SPLIT, cells, split_columns, split_name

TARGETS = ("label", "verb", "noun")


@dataclass(frozen=True)
class Clips:
    """The examples of each split, the clips that their rows number, and the manifest's label of every class."""

    splits: dict[str, Samples]
    clip_ids: list[str]
    classes: dict[str, list[int]]


def split_by(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with ``column`` as their ``split``: one cache can serve several protocols, a column each.

    Raises:
        OptionError: there is no such column, or its cells are not names of splits. (Clips to which the column ``split``
            gives another name take no part, as those with an empty cell.)
    """
    if column == SPLIT:
        return rows
    if column not in rows:
        raise unknown("split column", column, split_columns(rows) or [str(c) for c in rows])
    found = cells(rows[column])
    if not found:
        raise OptionError(f"split={column}: every cell of that column is empty; write train, validation or test there.")
    if wrong := sorted(found - NAMES):
        raise OptionError(
            f"split={column}: {wrong[0]!r} is not the name of a split; choose a column of train, validation and test."
        )
    return rows.assign(**{SPLIT: rows[column]})


def named_splits(table: pd.DataFrame) -> pd.Series[str] | None:
    """The split of each row under its usual name, None where the manifest gives none."""
    if "split" not in table or not (table["split"].fillna("") != "").any():
        return None
    return pd.Series([split_name(s) for s in table["split"].fillna("")], index=table.index, dtype=str)


def hold_out(
    table: pd.DataFrame, among: pd.Series[bool], share: float, by: Sequence[str], say: Callable[[str], None]
) -> pd.Series[bool]:
    """Which rows to hold out for validation: whole groups, in an order that depends on their names alone.

    Args:
        table: one row an example, with labels and the columns of ``by`` that there are.
        among: rows from which to take.
        share: of their labelled rows, at least so many are taken, and never all groups.
        by: columns by which examples may belong together; the first with more than one value decides.
        say: is told what was held out.

    Raises:
        OptionError: no column of ``by`` tells the rows apart.
    """
    labelled = among & (table[[t for t in TARGETS if t in table]].replace("", None).notna().any(axis=1))
    column = next((c for c in by if c in table and table[c][labelled].replace("", None).nunique() > 1), None)
    if column is None:
        raise OptionError("The manifest names no split and its clips come from one source: add a split column.")
    groups = sorted(
        table[column][labelled].replace("", None).dropna().unique(), key=lambda g: (zlib.crc32(str(g).encode()), str(g))
    )
    sizes = np.cumsum([int((labelled & (table[column] == g)).sum()) for g in groups])
    count = min(int(np.searchsorted(sizes, share * sizes[-1])) + 1, len(groups) - 1)
    out: pd.Series[bool] = among & table[column].isin(groups[:count])
    shown = ", ".join(map(str, groups[: min(count, 3)])) + ("…" if count > 3 else "")
    held, total = int((out & labelled).sum()), int(labelled.sum())
    say(f"validation: the manifest names none, so {held} of {total} labelled ones are held out ({column} {shown})")
    return out


def number(table: pd.DataFrame, sides: Sequence[str]) -> Clips:
    """Clips as rows and labels as class indices, split by split.

    Args:
        table: one row an example, indexed by its name: ``split``, the targets, and for each side the clip's id or NaN.
        sides: columns that hold clips.

    Raises:
        OptionError: no example has a label, or none to train or to test on.
    """
    classes = {
        t: sorted(int(v) for v in table[t].dropna().unique()) for t in TARGETS if t in table and table[t].notna().any()
    }
    if not classes:
        raise OptionError("No example has a label: the manifest needs a label, verb or noun column.")
    clip_ids = sorted({str(c) for side in sides for c in table[side].dropna()})
    row_of = {clip: row for row, clip in enumerate(clip_ids)}
    splits: dict[str, Samples] = {}
    for split, part in table.groupby("split", sort=True):
        rows = {s: torch.tensor([row_of.get(c, -1) if isinstance(c, str) else -1 for c in part[s]]) for s in sides}
        labels = {t: _indices(part[t], classes[t]) for t in classes}
        splits[str(split)] = Samples([str(name) for name in part.index], rows, labels)
    _check(splits, classes)
    return Clips(splits, clip_ids, classes)


def held_out(splits: dict[str, Samples]) -> str:
    """The split on which a run is judged: validation, or test where there is none."""
    return next((s for s in HELD_OUT if s in splits), HELD_OUT[0])


def _indices(values: pd.Series[int], classes: list[int]) -> torch.Tensor:
    there = values.notna().to_numpy()
    index = np.full(len(values), UNLABELLED)
    index[there] = np.searchsorted(classes, values[there].to_numpy(np.int64))
    return torch.from_numpy(index)


def _check(splits: dict[str, Samples], classes: dict[str, list[int]]) -> None:
    """There must be labelled examples to train on, and labelled ones to test on."""
    labelled = {split for split, s in splits.items() if any((s.labels[t] != UNLABELLED).any() for t in classes)}
    for wanted in (("train",), HELD_OUT):
        if not labelled.intersection(wanted):
            name = " or ".join(wanted)
            raise OptionError(f"No complete example of split {name} has a label: extract it or check the manifest.")
