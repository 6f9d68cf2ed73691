"""Which clips of a manifest a user's own dataset holds, by the rules that training follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.clips import GROUP_COLUMNS, ROLE, clip_table
from kdcache.data.pairs import ROLES, pairs
from kdcache.data.splits import TARGETS, assign_splits, class_indices, label_classes, named_splits
from kdcache.errors import OptionError, unknown
from kdcache.log import logger
from kdcache.methods.contract import UNLABELLED
from kdcache.splits import TRAIN, split_name


@dataclass(frozen=True)
class Selection:
    """The clips of one split, in the order of their names."""

    names: list[str]
    """Clip ids, or names of pairs."""
    clip_ids: list[str]
    labels: dict[str, Tensor]
    """Of each target the class index, int64 [n]; ``UNLABELLED`` (−1) where there is no label."""
    classes: dict[str, list[int]]
    """Of each target the manifest's label of every class; the same whichever split is selected."""

    def where(self, keep: Tensor) -> Selection:
        """The clips for which a mask [n] is true."""
        kept = [i for i, there in enumerate(keep.tolist()) if there]
        names, clip_ids = ([values[i] for i in kept] for values in (self.names, self.clip_ids))
        return Selection(names, clip_ids, {t: values[keep] for t, values in self.labels.items()}, self.classes)


def select_clips(rows: pd.DataFrame, cached: NDArray[np.bool_], split: str | None, share: float) -> Selection:
    """The cached clips of a split, as ``kdcache.data.clips`` would split them; labels are not required.

    Args:
        rows: of the manifest.
        cached: for each row whether all that is wanted of it is there; the others are counted, reported and left out.
        split: its name; ``None``: the clips of all splits, and of none.
        share: of the labelled training clips that are held out for validation where the manifest names no such clips.

    Raises:
        OptionError: an unknown split, with those that there are; or no group of clips can be held out.
    """
    table = clip_table(rows)
    there = table[ROLE].isin(set(rows["clip_id"][cached]))
    wanted = pd.Series(True, index=table.index)
    if split is not None:
        named = _splits(table, share)
        wanted = named == _known(split, named[there])
    lost = table.index[wanted & ~there]
    if len(lost):
        shown = ", ".join(map(str, lost[:3])) + ("…" if len(lost) > 3 else "")
        logger.warning("left out: %d of %d clips are not cached (%s)", len(lost), int(wanted.sum()), shown)
    part, classes = table[wanted & there], label_classes(table[there])
    ids = [str(clip) for clip in part.index]
    return Selection(ids, ids, {t: class_indices(part[t], found) for t, found in classes.items()}, classes)


def select_pairs(
    rows: pd.DataFrame, cached: NDArray[np.bool_], split: str | None, share: float, role: str, tau_s: float | None
) -> Selection:
    """One clip of each pair of a split, with the pair's labels, as ``kdcache.data.pairs`` would split them.

    Args:
        rows, cached, split, share: as in ``select_clips``.
        role: ``observed`` or ``action``: which clip of a pair; pairs of which it is not cached are left out.
        tau_s: anticipation time in seconds, where the manifest has several.

    Raises:
        OptionError: an unknown role or split, or what ``kdcache.data.pairs.pairs`` refuses.
        ManifestError: pairs that contradict themselves.
    """
    if role not in ROLES:
        raise unknown("role", role, ROLES)
    examples = pairs(rows, cached, tau_s, share)
    known = pd.Series(list(examples.splits))
    parts = examples.splits.values() if split is None else [examples.splits[_known(split, known)]]
    at = torch.cat([part.rows[role] for part in parts])
    ids = ["" if row < 0 else examples.clip_ids[row] for row in at.tolist()]
    labels = {t: torch.cat([part.labels[t] for part in parts]) for t in examples.classes}
    found = Selection([name for part in parts for name in part.names], ids, labels, examples.classes)
    return found.where(at >= 0)


def with_labels(found: Selection, targets: Iterable[str], labelled: bool) -> Selection:
    """A selection without the clips that lack one of these labels, where ``labelled`` asks for it.

    Raises:
        OptionError: an unknown target, or one that no cached clip has.
    """
    keep = torch.ones(len(found.names), dtype=torch.bool)
    for target in targets:
        if target not in TARGETS:
            raise unknown("target", target, TARGETS)
        if target not in found.classes:
            have = f"choose {' or '.join(found.classes)}, or target=None" if found.classes else "set target=None"
            raise OptionError(f"target={target}: no cached clip of the manifest has a {target}; {have}.")
        keep &= found.labels[target] != UNLABELLED
    return found.where(keep) if labelled else found


def _splits(table: pd.DataFrame, share: float) -> pd.Series[str]:
    """The split of each clip: the manifest's, with clips held out where it names none for validation."""
    named = named_splits(table)
    if named is None:
        named = pd.Series(TRAIN, index=table.index, dtype=str)
    held_from = table[named == TRAIN]
    if share and label_classes(held_from):
        return assign_splits(table, share, GROUP_COLUMNS)
    return named


def _known(split: str, named: pd.Series[str]) -> str:
    """A split under its usual name; ``OptionError`` where no cached clip has it."""
    name, known = split_name(split), sorted(set(named) - {""})
    if name not in known:
        raise unknown("split", split, known)
    return name
