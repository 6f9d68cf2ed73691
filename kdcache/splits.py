"""The names of splits, and the columns of a manifest that assign clips to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdcache.errors import OptionError, unknown

if TYPE_CHECKING:
    import pandas as pd

SPLIT = "split"  # the column that assigns splits where no other is named
TRAIN = "train"
HELD_OUT = ("validation", "test")  # never trained on; only validation may select anything
OTHER_NAMES = {"val": "validation", "valid": "validation"}
_LOOK = 1000  # cells that show of most columns that they are no splits
NAMES = frozenset({TRAIN, *HELD_OUT, *OTHER_NAMES})
_LIKELY = NAMES | {"", "nan", "None", "<NA>"}  # … and what stands for a missing cell


def split_name(cell: str) -> str:
    """The usual name of a split: ``validation`` for ``val`` and ``valid``; any other text as it is."""
    return OTHER_NAMES.get(cell, cell)


def cells(column: pd.Series[Any]) -> set[str]:
    """The distinct cells of a column that are not empty."""
    return {str(cell) for cell in column.dropna().unique()} - {""}


def split_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of a manifest whose cells are names of splits or empty, and not all empty."""
    first = rows.iloc[:_LOOK].to_dict("list")  # a series for each of thousands of columns would take seconds
    likely = [column for column in rows if set(map(str, first[column])) <= _LIKELY]
    return [str(column) for column in likely if (found := cells(rows[column])) and found <= NAMES]


def without_splits(rows: pd.DataFrame) -> str | None:
    """What training will do with a labelled manifest that names no split; ``None`` where it names one or no label."""
    labelled = any(rows[column].notna().any() for column in ("label", "verb", "noun") if column in rows)
    if not labelled or split_columns(rows):
        return None
    return (
        "The manifest names no split: training will hold out a fifth of the clips for validation, whole groups, "
        "subjects or sources (validation=0.2), and test on none. A column split says otherwise, or split_column."
    )


def is_fold(rows: pd.DataFrame, name: str) -> bool:
    """Whether ``name`` is of the form ``column=value``, and not itself a column: such clips test, the others train."""
    return "=" in name and name not in rows


def fold_values(rows: pd.DataFrame, column: str) -> list[str]:
    """The values of a column that can be left out one at a time, as text, ascending.

    Raises:
        OptionError: there is no such column, or it has fewer than two values.
    """
    if column not in rows:
        raise unknown("column of the manifest", column, [str(name) for name in rows])
    found = sorted(cells(rows[column]))
    if len(found) < 2:
        has = f"has one value, {found[0]!r}" if found else "is empty"
        raise OptionError(
            f"{column}=…: column {column} {has}, so nothing is left to train on when it is held out; choose a column "
            "with two values or more."
        )
    return found


def fold(rows: pd.DataFrame, name: str) -> pd.Series[str]:
    """``column=value`` → the split of each row: ``test`` where the column has that value, ``train`` where it has
    another, empty (no part) where its cell is empty.

    Raises:
        OptionError: an unknown column or value, with the nearest, or a column with fewer than two values.
    """
    column, _, value = name.partition("=")
    known = fold_values(rows, column)
    if value not in known:
        raise unknown(f"value of column {column}", value, known)
    cell = rows[column].astype(str).where(rows[column].notna(), "")
    return cell.mask(cell != "", TRAIN).mask(cell == value, "test")


def held_out_clips(rows: pd.DataFrame) -> dict[str, set[str]]:
    """The clips that each split column keeps from training: column → clip ids, ``split`` first.

    ``split`` is looked at even where some of its cells are names of something else.
    """
    columns = [SPLIT, *(c for c in split_columns(rows) if c != SPLIT)]
    names = {name for name in NAMES if split_name(name) in HELD_OUT}
    return {column: set(rows.loc[rows[column].isin(names), "clip_id"]) for column in columns if column in rows}
