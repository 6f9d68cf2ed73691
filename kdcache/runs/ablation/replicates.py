"""With what each row is repeated: seeds and, where a protocol has several, columns that split the clips."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from kdcache.data.splits import split_by
from kdcache.errors import OptionError
from kdcache.splits import split_columns

TRIAL_SEED = 1000  # of the first run of a trial; final runs have seeds below

SplitColumns = Sequence[str | None]
"""Columns of the manifest; ``[None]`` where the rows' own settings name one."""


class Replicate(NamedTuple):
    """One run of every row."""

    split_column: str | None
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """What ``train`` is called with."""
        return split_option(self.split_column) | {"seed": self.seed}

    def __str__(self) -> str:
        return f"{self.split_column}, seed {self.seed}" if self.split_column else f"seed {self.seed}"


def split_option(column: str | None) -> dict[str, Any]:
    """A split column as an option of ``train``."""
    return {} if column is None else {"split_column": column}


def row_folder(out: Path, slug: str, column: str | None) -> Path:
    """Folder of a row's runs."""
    return out / slug / re.sub(r"[^\w.=-]+", "-", column) if column else out / slug


def run_folder(out: Path, slug: str, replicate: Replicate) -> Path:
    """Folder of a final run."""
    return row_folder(out, slug, replicate.split_column) / f"seed-{replicate.seed}"


def choose_columns(wanted: Sequence[str], clips: pd.DataFrame) -> list[str]:
    """The split columns of a manifest that match names and patterns such as ``split_*``, each once.

    Raises:
        OptionError: there is no such column, or it does not say which clips train, validate and test.
    """
    known, found = split_columns(clips), list[str]()
    for name in wanted:
        matching = fnmatch.filter(known, name) if re.search(r"[*?[]", name) else [name]
        if not matching:
            raise OptionError(
                f"split_columns={name}: no split column of the manifest is of that form; it has {_some(known)}."
            )
        found += matching
    if not found:
        raise OptionError("split_columns: name at least one column of the manifest, such as split_1 or split_*.")
    for name in found:
        split_by(clips, name)
    return list(dict.fromkeys(found))


def in_words(replicates: Sequence[Replicate]) -> str:
    """``5 seeds × 30 splits``."""
    seeds = _count(len({r.seed for r in replicates}), "seed")
    columns = list(dict.fromkeys(r.split_column for r in replicates if r.split_column))
    return f"{seeds} × {_count(len(columns), 'split')} ({_some(columns)})" if columns else seeds


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
