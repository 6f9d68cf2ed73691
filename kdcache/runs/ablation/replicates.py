"""With what each row is repeated: seeds within draws, and, where a protocol has several, columns that split the clips.

A *draw* is one choice of what a reported number should not depend on: the clips that keep their labels, the groups that
validate, the fit of the backbone that made the features.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kdcache.data.splits import split_by
from kdcache.errors import OptionError
from kdcache.splits import fold_values, is_fold, split_columns

TRIAL_SEED = 1000  # of the first run of a trial; final runs have seeds below

DRAW = "{draw}"
"""In the folder of the cache: replaced by the number of the draw."""

SplitColumns = Sequence[str | None]
"""Columns of the manifest, or ``column=value`` held out; ``[None]`` where the rows' own settings name one."""

LONGEST = 100  # characters of a split column's name that a folder keeps


class Replicate(NamedTuple):
    """One run of every row."""

    split_column: str | None
    seed: int
    draw: int | None = None
    """None where a comparison has but one."""

    @property
    def options(self) -> dict[str, Any]:
        """What ``train`` is called with."""
        return split_option(self.split_column) | {"seed": self.seed}

    def __str__(self) -> str:
        parts = (self.split_column, None if self.draw is None else f"draw {self.draw}", f"seed {self.seed}")
        return ", ".join(part for part in parts if part)


def shards_of(shards: str | Path, draw: int | None) -> str:
    """Folder of a draw's cache; of the first where there is no other."""
    return str(shards).replace(DRAW, str(draw or 0))


def draw_numbers(draws: int | None) -> list[int | None]:
    """0, 1, 2 …; ``[None]`` for a comparison without draws."""
    return [None] if draws is None else list(range(draws))


def all_replicates(columns: SplitColumns, seeds: int, draws: int | None = None) -> list[Replicate]:
    """One draw after the other, in it one split column after the other: what is in memory is of one."""
    return [Replicate(c, seed, draw) for draw in draw_numbers(draws) for c in columns for seed in range(seeds)]


def split_option(column: str | None) -> dict[str, Any]:
    """A split column as an option of ``train``."""
    return {} if column is None else {"split_column": column}


def row_folder(out: Path, slug: str, column: str | None) -> Path:
    """Folder of a row's runs.

    A value that is held out may be any text: where its folder cannot have its very name, a digest tells it from others.
    """
    if not column:
        return out / slug
    plain = re.sub(r"[^\w.=-]+", "-", column)
    if "=" in column and (plain != column or len(plain) > LONGEST):
        plain = f"{plain[:LONGEST]}-{hashlib.sha256(column.encode()).hexdigest()[:8]}"
    return out / slug / plain


def run_folder(out: Path, slug: str, replicate: Replicate) -> Path:
    """Folder of a final run."""
    folder = row_folder(out, slug, replicate.split_column)
    if replicate.draw is not None:
        folder /= f"draw-{replicate.draw}"
    return folder / f"seed-{replicate.seed}"


def choose_columns(wanted: Sequence[str], clips: pd.DataFrame) -> list[str]:
    """The split columns of a manifest that match names and patterns such as ``split_*``, each once.

    ``subject=*`` leaves the values of column ``subject`` out one at a time, ``subject=S2`` one of them.

    Raises:
        OptionError: there is no such column or value, or it does not say which clips train, validate and test.
    """
    known, found = split_columns(clips), list[str]()
    for name in wanted:
        if is_fold(clips, name):
            found += _choose_folds(name, clips)
            continue
        matching = fnmatch.filter(known, name) if re.search(r"[*?[]", name) else [name]
        if not matching:
            raise OptionError(
                f"split_columns={name}: no split column of the manifest is of that form; it has {_some(known)}."
            )
        found += matching
    if not found:
        raise OptionError(
            "split_columns: name at least one column of the manifest, such as split_1, split_* or subject=*."
        )
    for name in found:
        split_by(clips, name)
    return list(dict.fromkeys(found))


def _choose_folds(name: str, clips: pd.DataFrame) -> list[str]:
    """``subject=*`` → ``subject=S1``, ``subject=S2`` …; a value of the column stands for itself."""
    column, _, pattern = name.partition("=")
    values = fold_values(clips, column)
    if pattern in values or not re.search(r"[*?[]", pattern):
        return [name]
    matching = fnmatch.filter(values, pattern)
    if not matching:
        raise OptionError(f"split_columns={name}: no value of column {column} is of that form; it has {_some(values)}.")
    return [f"{column}={value}" for value in matching]


def in_words(replicates: Sequence[Replicate]) -> str:
    """``5 draws × 3 seeds × 30 splits``."""
    seeds = _count(len({r.seed for r in replicates}), "seed")
    if draws := {r.draw for r in replicates} - {None}:
        seeds = f"{_count(len(draws), 'draw')} × {seeds}"
    columns = list(dict.fromkeys(r.split_column for r in replicates if r.split_column))
    return f"{seeds} × {_count(len(columns), 'split')} ({_some(columns)})" if columns else seeds


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
