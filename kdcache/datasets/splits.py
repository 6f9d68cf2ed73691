"""Several splits of one protocol side by side: a column for each, so that one extraction serves them all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.lists import read_lines
from kdcache.errors import ManifestError

OFFICIAL = 3  # splits of UCF101, HMDB51, JHMDB and EGTEA
Wanted = Literal[1, 2, 3, "all"]


def column(number: int, count: int) -> str:
    """``split_01`` of 30, ``split_1`` of 3."""
    return f"split_{number:0{len(str(count))}d}"


def official(read: Callable[[int], pd.DataFrame], split: Wanted) -> pd.DataFrame:
    """The clips of one official split, or of ``all``: those that any split uses.

    With ``all`` the columns ``split_1``, ``split_2`` and ``split_3`` say what a clip is in each of them, empty where it
    does not take part; ``split`` is that of the first.

    Args:
        read: number of a split → one row a clip, with ``name``, ``split`` and columns that all splits agree on.
        split: which.

    Raises:
        ManifestError: with ``all``, a clip that one split names twice.
    """
    if split != "all":
        return read(split)
    tables = [read(number) for number in range(1, OFFICIAL + 1)]
    for number, table in enumerate(tables, 1):
        if (twice := table["name"].duplicated()).any():
            raise ManifestError(f"split {number}", [f"names {n!r} twice" for n in table.loc[twice, "name"]])
    clips = pd.concat(tables).drop_duplicates("name", ignore_index=True)
    parts = [clips["name"].map(table.set_index("name")["split"]).fillna("") for table in tables]
    clips["split"] = parts[0]
    return clips.assign(**{column(i, OFFICIAL): part for i, part in enumerate(parts, 1)})


def leave_one_out(parts: pd.Series[str]) -> dict[str, pd.Series[str]]:
    """A split column for each distinct cell, ``split_S1`` …: clips with that cell test, the others train."""
    return {f"split_{value}": split_without(parts, value) for value in sorted(parts.unique())}


def split_without(parts: pd.Series[str], value: str) -> pd.Series[str]:
    """Clips whose cell is ``value`` test, the others train."""
    return (parts == value).map({True: "test", False: "train"})


def random_halves(names: Sequence[str], count: int, seed: int) -> list[set[str]]:
    """``count`` random halves of distinct names (the smaller one of an odd number): whose digests come first.

    The digest is SHA-256 of ``<seed>/<number>/<name>``, numbers from 1: the same on every machine, for ever.
    """

    def order(number: int) -> list[str]:
        return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest())

    return [set(order(number)[: len(names) // 2]) for number in range(1, count + 1)]


def read_halves(path: Path, names: Sequence[str]) -> list[set[str]]:
    """Training halves from a text file: a line for each split with the names that train, separated by blanks.

    Raises:
        ManifestError: no such file or an empty one; lines with unknown names, or with all of them or none left to test.
    """
    if not path.is_file():
        raise ManifestError(str(path), ["no such file; write a line for each split, with the names that train"])
    known, problems, halves = set(names), [], []
    for i, line in enumerate(read_lines(path), 1):
        half = set(line.split())
        if unlisted := sorted(half - known):
            problems.append(f"line {i}: {unlisted[0]!r} is not in the index; names are separated by blanks")
        elif half == known:
            problems.append(f"line {i}: names all there are, so that nothing is left to test on")
        elif half:
            halves.append(half)
    if problems or not halves:
        raise ManifestError(str(path), problems or ["is empty; write a line for each split, with the names that train"])
    return halves
