"""What every kind of example needs: its split, labels as class indices, and something held out."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from kdcache.errors import OptionError, unknown
from kdcache.log import logger
from kdcache.methods.contract import UNLABELLED, VALIDATION, Split
from kdcache.splits import HELD_OUT, NAMES, SPLIT, TRAIN, cells, fold, is_fold, split_columns, split_name

TARGETS = ("label", "verb", "noun")


@dataclass(frozen=True)
class Examples:
    """The examples of each split, the clips that their rows number, and the manifest's label of every class."""

    splits: dict[str, Split]
    clip_ids: list[str]
    classes: dict[str, list[int]]


def split_by(rows: pd.DataFrame, column: str, validation_as: str = VALIDATION) -> pd.DataFrame:
    """The rows with ``column`` as their ``split``: one cache can serve several protocols, a column each.

    Args:
        rows: of a manifest.
        column: names a column of train, validation and test; or leaves one value of any other column out,
            ``subject=S2``: clips with that value test, the others train.
        validation_as: what clips of split ``validation`` count as: that, ``train`` or ``test``.

    Raises:
        OptionError: there is no such column or value, or its cells are not names of splits. (Examples to which the
            column ``split`` gives another name take no part, as those with an empty cell: data sets call their
            unlabelled test sets so. ``assign_splits`` warns of others.)
    """
    if validation_as != VALIDATION:
        as_named = split_by(rows, column)
        names = named_splits(as_named)
        return as_named if names is None else as_named.assign(**{SPLIT: names.replace(VALIDATION, validation_as)})
    if column == SPLIT:
        return rows
    if is_fold(rows, column):
        return rows.assign(**{SPLIT: fold(rows, column)})
    if column not in rows:
        raise unknown("split column", column, split_columns(rows) or [str(c) for c in rows])
    found = cells(rows[column])
    if not found:
        raise OptionError(
            f"split_column={column}: every cell of that column is empty; write train, validation or test there."
        )
    if wrong := sorted(found - NAMES):
        raise OptionError(
            f"split_column={column}: {wrong[0]!r} is not the name of a split; choose a column of train, "
            f"validation and test, or hold out one value: split_column={column}={wrong[0]}."
        )
    return rows.assign(**{SPLIT: rows[column]})


def named_splits(table: pd.DataFrame) -> pd.Series[str] | None:
    """The split of each row under its usual name, None where the manifest gives none."""
    if "split" not in table or not (table["split"].fillna("") != "").any():
        return None
    return pd.Series([split_name(s) for s in table["split"].fillna("").tolist()], index=table.index, dtype=str)


def assign_splits(
    table: pd.DataFrame, share: float, by: Sequence[str], quiet: bool = False, seed: int = 0
) -> pd.Series[str]:
    """The split of each example: that of the manifest, with validation examples held out where it names none.

    Args:
        table: see ``hold_out``.
        share: of the labelled training examples to hold out; 0 holds nothing out.
        by: see ``hold_out``.
        quiet: log nothing.
        seed: see ``hold_out``.

    Raises:
        OptionError: nothing is held out and there are no test examples either.
    """
    split = named_splits(table)
    if split is None:
        split = pd.Series("train", index=table.index, dtype=str)
    elif not quiet:
        _warn_of_other_names(split)
    if share and not (split == VALIDATION).any():
        held = hold_out(table, split == "train", share, by, quiet, seed)
        if not quiet:
            _warn_of_lost_classes(table, split == "train", held)
        return split.mask(held, VALIDATION)
    if not split.isin(HELD_OUT).any():
        raise OptionError(
            "validation=0 leaves nothing to test on, as the manifest has no held-out clips: set validation=0.2 or mark "
            "some."
        )
    return split


def _warn_of_other_names(split: pd.Series[str]) -> None:
    """Warn of examples that take no part because of what their split is called; ``test_s1`` is a test set of its own.

    A mistyped ``train`` cannot be told from a set that is put aside, which a run may predict on, so it is not refused.
    """
    other = split[~split.isin({"", TRAIN, *HELD_OUT}) & ~split.str.startswith("test_")]
    if len(other):
        counts = other.value_counts().sort_index()
        shown = ", ".join(f"{name!r} ({count})" for name, count in counts.iloc[:5].items())
        logger.warning(
            "column split: %s%s: train, validation and test are the names of splits, so %d of %d examples neither "
            "train nor are scored",
            shown,
            "…" if len(counts) > 5 else "",
            len(other),
            len(split),
        )


def _warn_of_lost_classes(table: pd.DataFrame, train: pd.Series[bool], held: pd.Series[bool]) -> None:
    for target in (t for t in TARGETS if t in table):
        labels = table[target].replace("", None)
        lost = sorted(map(str, set(labels[train].dropna()) - set(labels[train & ~held].dropna())))
        if lost:
            shown = ", ".join(lost[:5]) + ("…" if len(lost) > 5 else "")
            logger.warning(
                "holding clips out leaves no training clip of %s %s; see validation, or a split column", target, shown
            )


def hold_out(
    table: pd.DataFrame,
    among: pd.Series[bool],
    share: float,
    by: Sequence[str],
    quiet: bool = False,
    seed: int = 0,
) -> pd.Series[bool]:
    """Which rows to hold out for validation: whole groups, in an order that depends on their names and ``seed`` alone.

    Args:
        table: one row an example, with labels and the columns of ``by`` that there are.
        among: rows from which to take.
        share: of their labelled rows, at least so many are taken, and never all groups.
        by: columns by which examples may belong together; the first with more than one value decides.
        quiet: log nothing.
        seed: another one puts the groups in another order.

    Raises:
        OptionError: no column of ``by`` tells the rows apart.
    """
    labelled = among & (table[[t for t in TARGETS if t in table]].replace("", None).notna().any(axis=1))
    column = next((c for c in by if c in table and table[c][labelled].replace("", None).nunique() > 1), None)
    if column is None:
        raise OptionError(
            "The manifest names no validation split and its training clips come from one source, so none can be held "
            "out: add a split column, or set validation=0."
        )

    def place(group: Any) -> tuple[int, str]:
        if not seed:  # the order of versions without seeds
            return zlib.crc32(str(group).encode()), str(group)
        digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()  # CRCs of two prefixes differ by a constant alone
        return int.from_bytes(digest[:8], "big"), str(group)

    groups = sorted(table[column][labelled].replace("", None).dropna().unique(), key=place)
    sizes = np.cumsum([int((labelled & (table[column] == g)).sum()) for g in groups])
    count = min(int(np.searchsorted(sizes, share * sizes[-1])) + 1, len(groups) - 1)
    out: pd.Series[bool] = among & table[column].isin(groups[:count])
    shown = ", ".join(map(str, groups[: min(count, 3)])) + ("…" if count > 3 else "")
    held, total = int((out & labelled).sum()), int(labelled.sum())
    if not quiet:
        logger.info(
            "validation: the manifest names none, so %d of %d labelled ones are held out (%s %s)",
            held,
            total,
            column,
            shown,
        )
    return out


def encode_examples(table: pd.DataFrame, roles: Sequence[str]) -> Examples:
    """Examples as rows and labels as class indices, split by split.

    Args:
        table: one row an example, indexed by its name: ``split``, the targets, and for each role the clip's id or NaN.
        roles: columns that hold clips.

    Raises:
        OptionError: no example has a label, or none to train or to test on.
    """
    classes = label_classes(table)
    if not classes:
        raise OptionError("No example has a label: the manifest needs a label, verb or noun column.")
    clip_ids = sorted({str(c) for role in roles for c in table[role].dropna().tolist()})
    row_of = {clip: row for row, clip in enumerate(clip_ids)}
    splits: dict[str, Split] = {}
    for split, part in table.groupby("split", sort=True):
        rows = {
            s: torch.tensor([row_of.get(c, -1) if isinstance(c, str) else -1 for c in part[s].tolist()]) for s in roles
        }
        labels = {t: class_indices(part[t], classes[t]) for t in classes}
        splits[str(split)] = Split([str(name) for name in part.index], rows, labels)
    _check(splits, classes)
    return Examples(splits, clip_ids, classes)


def held_out(splits: dict[str, Split]) -> str:
    """The split whose predictions a run gives by default: validation, or test where there is none."""
    return next((s for s in HELD_OUT if s in splits), HELD_OUT[0])


def label_classes(table: pd.DataFrame) -> dict[str, list[int]]:
    """The manifest's labels of each target that has any, ascending: class ``i`` is the i-th of them.

    These are the classes that occur in any split, held-out ones included: which classes there are is known, not which
    clip has which. A class that no clip has is no output (6 of the 125 verbs of EPIC-KITCHENS-55's training labels).
    """
    return {
        t: sorted(int(v) for v in table[t].dropna().unique()) for t in TARGETS if t in table and table[t].notna().any()
    }


def class_indices(values: pd.Series[int], classes: list[int]) -> torch.Tensor:
    """Labels of a manifest as class indices, int64 [n], ``UNLABELLED`` where a cell is empty."""
    there = values.notna().to_numpy()
    index = np.full(len(values), UNLABELLED)
    index[there] = np.searchsorted(classes, values[there].to_numpy(np.int64))
    return torch.from_numpy(index)


def warn_of_unseen_classes(examples: Examples) -> None:
    """Warn of classes that no labelled training example has, but test examples (validation ones, without a test)."""
    labels = {split: examples.splits[split].labels for split in reversed(HELD_OUT) if split in examples.splits}
    tested = next(split for split, each in labels.items() if any((y != UNLABELLED).any() for y in each.values()))
    found = []
    for target, y in labels[tested].items():
        seen = {UNLABELLED, *examples.splits[TRAIN].labels[target].tolist()}
        unseen = [i for i in y.tolist() if i not in seen]
        if unseen:
            classes = [examples.classes[target][i] for i in sorted(set(unseen))]
            shown = ", ".join(map(str, classes[:5])) + ("…" if len(classes) > 5 else "")
            found.append(f"{len(unseen)} of {len(y)} are of {_classes(len(classes))} of {target} ({shown})")
    if found:
        logger.warning(
            "%s examples: %s that no labelled training example has: what is trained on these cannot name them",
            tested,
            "; ".join(found),
        )


def _classes(count: int) -> str:
    return f"{count} class" + "es" * (count != 1)


def _check(splits: dict[str, Split], classes: dict[str, list[int]]) -> None:
    """There must be labelled examples to train on, and labelled ones to test on."""
    labelled = {split for split, s in splits.items() if any((s.labels[t] != UNLABELLED).any() for t in classes)}
    for wanted in (("train",), HELD_OUT):
        if not labelled.intersection(wanted):
            name = " or ".join(wanted)
            raise OptionError(f"No complete example of split {name} has a label: extract it or check the manifest.")
