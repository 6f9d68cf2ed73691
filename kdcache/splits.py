"""The names of splits, and the columns of a manifest that assign clips to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SPLIT = "split"  # the column that assigns splits where no other is named
TRAIN = "train"
HELD_OUT = ("validation", "test")  # never trained on; only validation may select anything
OTHER_NAMES = {"val": "validation", "valid": "validation"}
NAMES = frozenset({TRAIN, *HELD_OUT, *OTHER_NAMES})


def split_name(cell: str) -> str:
    """The usual name of a split: ``validation`` for ``val`` and ``valid``; any other text as it is."""
    return OTHER_NAMES.get(cell, cell)


def cells(column: pd.Series[Any]) -> set[str]:
    """The distinct cells of a column that are not empty."""
    return {str(cell) for cell in column.dropna().unique()} - {""}


def split_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of a manifest whose cells are names of splits or empty, and not all empty."""
    return [str(column) for column in rows if (found := cells(rows[column])) and found <= NAMES]


def held_out_clips(rows: pd.DataFrame) -> dict[str, set[str]]:
    """The clips that each split column keeps from training: column → clip ids, ``split`` first.

    ``split`` is looked at even where some of its cells are names of something else.
    """
    columns = [SPLIT, *(c for c in split_columns(rows) if c != SPLIT)]
    names = {name for name in NAMES if split_name(name) in HELD_OUT}
    return {column: set(rows.loc[rows[column].isin(names), "clip_id"]) for column in columns if column in rows}
