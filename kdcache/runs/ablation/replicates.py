"""With what each row is repeated: seeds and, where a protocol has several, splits of the clips."""

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

Splits = Sequence[str | None]
"""Columns of the manifest; ``[None]`` where the rows' own settings say which."""


class Repeat(NamedTuple):
    """One run of every row."""

    split: str | None
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """What ``train`` is called with."""
        return split_option(self.split) | {"seed": self.seed}

    def __str__(self) -> str:
        return f"{self.split}, seed {self.seed}" if self.split else f"seed {self.seed}"


def split_option(split: str | None) -> dict[str, Any]:
    """As an option of ``train``."""
    return {} if split is None else {"split": split}


def row_folder(out: Path, slug: str, split: str | None) -> Path:
    """Where a row's runs lie."""
    return out / slug / re.sub(r"[^\w.=-]+", "-", split) if split else out / slug


def run_folder(out: Path, slug: str, repeat: Repeat) -> Path:
    """Where a final run lies."""
    return row_folder(out, slug, repeat.split) / f"seed-{repeat.seed}"


def choose_splits(wanted: Sequence[str], clips: pd.DataFrame) -> list[str]:
    """The manifest columns that are meant by names and patterns such as ``split_*``, each once.

    Raises:
        OptionError: there is no such column, or it does not say which clips train, validate and test.
    """
    known, found = split_columns(clips), list[str]()
    for name in wanted:
        matching = fnmatch.filter(known, name) if re.search(r"[*?[]", name) else [name]
        if not matching:
            raise OptionError(f"splits={name}: no split column of the manifest is of that form; it has {_some(known)}.")
        found += matching
    if not found:
        raise OptionError("splits: name at least one column of the manifest, such as split_1 or split_*.")
    for name in found:
        split_by(clips, name)
    return list(dict.fromkeys(found))


def in_words(repeats: Sequence[Repeat]) -> str:
    """``5 seeds × 30 splits``."""
    seeds, splits = len({r.seed for r in repeats}), list(dict.fromkeys(r.split for r in repeats if r.split))
    return f"{_count(seeds, 'seed')} × {_count(len(splits), 'split')} ({_some(splits)})" if splits else f"{seeds} seeds"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
