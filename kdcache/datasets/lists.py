"""Lists of a dataset as they are distributed: lines, tables, and the numbers in them.

What is none of these is a ``ManifestError`` that names the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.csv_text import MOST_BYTES, BrokenTable, read_table
from kdcache.errors import ManifestError

if TYPE_CHECKING:
    import pandas as pd

_WHOLE = re.compile("[0-9]{1,18}")
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{0,18})?")


def read_lines(path: Path) -> list[str]:
    """All lines of a text file, empty ones too.

    Raises:
        ManifestError: no file, no plain file, or not UTF-8.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode) or state.st_size > MOST_BYTES:
            raise ManifestError(str(path), ["is no plain file of a list's size"])
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ManifestError(str(path), ["no such file; it belongs to the official lists"]) from error
    except OSError as error:
        raise ManifestError(str(path), [f"cannot be read ({error.strerror})"]) from error
    except UnicodeDecodeError as error:
        raise ManifestError(str(path), [f"byte {error.start} is not UTF-8; take the official file"]) from error


def filled_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, without blanks at their ends, each with its number; raises as ``read_lines``."""
    return [(i, line.strip()) for i, line in enumerate(read_lines(path), 1) if line.strip()]


def read_cells(path: Path) -> list[list[str]]:
    """The rows of a CSV file without a header, cells without blanks before them.

    Raises:
        ManifestError: as ``read_lines``; no CSV, no rows, or rows of different lengths.
    """
    try:
        rows = [row for row in csv.reader(read_lines(path), skipinitialspace=True) if row]
    except csv.Error as error:
        raise ManifestError(str(path), [f"is not CSV ({error})"]) from error
    if not rows:
        raise ManifestError(str(path), ["is empty"])
    width = len(rows[0])
    wrong = [f"row {i} has {len(row)} cells, the first {width}" for i, row in enumerate(rows, 1) if len(row) != width]
    if wrong:
        raise ManifestError(str(path), wrong)
    return rows


def read_frame(path: Path, needed: Sequence[str] = (), may_be_empty: bool = False) -> pd.DataFrame:
    """A CSV file with a header, all cells as text.

    Args:
        path: the file.
        needed: columns that it must have, once each.
        may_be_empty: a table without rows is accepted; of its columns those needed are returned.

    Raises:
        ManifestError: no such file, no table, a column is missing, or no rows.
    """
    import pandas as pd

    try:
        rows = read_table(path, needed)
    except FileNotFoundError as error:
        raise ManifestError(str(path), ["no such file; it belongs to the official lists"]) from error
    except BrokenTable as error:
        raise ManifestError(str(path), [f"{error}; take the official file"]) from error
    if not rows and not may_be_empty:
        raise ManifestError(str(path), ["has no rows; take the official file"])
    return pd.DataFrame(rows, columns=None if rows else list(needed), dtype=str)


def whole_numbers(path: Path, table: pd.DataFrame, column: str) -> list[int]:
    """A column of ``read_frame`` as numbers of 0 and more; ``ManifestError`` with the lines of other cells."""
    return [int(cell) for cell in _matching(path, table, column, _WHOLE, "a whole number")]


def decimals(path: Path, table: pd.DataFrame, column: str) -> list[float]:
    """A column of ``read_frame`` as numbers of 0 and more; ``ManifestError`` with the lines of other cells."""
    return [float(cell) for cell in _matching(path, table, column, _DECIMAL, "a number")]


def demand(path: Path, table: pd.DataFrame, column: str, pattern: str, form: str) -> None:
    """``ManifestError`` with the lines of cells that are not of a form, given as a pattern and in words."""
    list(_matching(path, table, column, re.compile(pattern, re.ASCII), form))


def _matching(path: Path, table: pd.DataFrame, column: str, pattern: re.Pattern[str], form: str) -> Iterator[str]:
    cells = table[column].tolist()
    wrong = [i for i, cell in enumerate(cells) if not pattern.fullmatch(cell)]
    if wrong:
        # Cells may hold anything: a short piece of each says enough.
        raise ManifestError(str(path), [f"line {i + 2}: {column} {cells[i][:60]!r} is not {form}" for i in wrong])
    return iter(cells)
