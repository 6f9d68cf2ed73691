"""Small CSV tables that kdcache writes beside its arrays and reads back, and cells that spreadsheets take for formulas.

A spreadsheet computes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return, wherever its text
came from. ``table_text`` puts an apostrophe before such a cell, as spreadsheets themselves do for text; ``read_table``
takes it away, so that a clip called ``-x8Vq`` is found under its name.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from kdcache.plain_csv import plain_table

MOST_BYTES = 2**30
"""Larger files are no table of kdcache's, and are not read."""

_QUOTED = re.compile(r'[",\r\n]')
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_MARKED = re.compile(r"'+[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class BrokenTable(ValueError):
    """A file that is not the table it is taken for; the message says why, as the rest of a sentence."""


def quoted(text: str) -> str:
    """A cell as it stands in a CSV file."""
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def quoted_column(texts: list[str]) -> list[str]:
    """``quoted`` of many cells, of which few, or none, need it."""
    return [quoted(text) for text in texts] if _QUOTED.search("".join(texts)) else texts


def neutral(text: str) -> str:
    """A cell that spreadsheets show as it is: formulas get an apostrophe, numbers and other text stay."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original(text: str) -> str:
    """What ``neutral`` was given."""
    return text[1:] if _MARKED.match(text) else text


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with neutral cells, as text of a CSV file."""
    lines = [columns, *rows]
    return "".join(",".join(quoted(neutral(cell)) for cell in line) + "\n" for line in lines)


def check_of(cells: Iterable[object]) -> str:
    """Eight hex digits of a row, for a column of its own: what a flipped bit has changed is not believed."""
    return hashlib.sha256("|".join(map(str, cells)).encode(errors="backslashreplace")).hexdigest()[:8]


def read_columns(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """As ``read_table``, column by column: of a table of a million rows no row is made."""
    if path.is_file() and path.stat().st_size <= MOST_BYTES:
        try:
            table = plain_table(path.read_bytes())
        except OSError:
            table = None
        if table is not None and set(needed) <= set(table.names):
            columns = {name: table.texts(name) for name in table.names}
            return {c: list(map(original, texts)) if "'" in "".join(texts) else texts for c, texts in columns.items()}
    rows = read_table(path, needed)
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else needed)}


def neutral_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with neutral texts, names of columns included; numbers, missing values and the table given stay."""
    return _texts(frame, neutral)


def original_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The table that ``neutral_frame`` was given."""
    return _texts(frame, original)


def _texts(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    def changed(value: object) -> object:
        return change(value) if isinstance(value, str) else value

    out = frame.copy(deep=False)
    for name in (name for name, dtype in frame.dtypes.items() if dtype.kind == "O"):
        out[name] = frame[name].map(changed)
    return out.rename(columns=changed)


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table that ``table_text`` made, or a person: column → cell.

    Args:
        path: the file.
        needed: columns that it must have.

    Raises:
        FileNotFoundError: there is none.
        BrokenTable: empty, binary, cut short, of other columns, not UTF-8, no plain file, or may not be read.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise BrokenTable("is no plain file")
        if state.st_size > MOST_BYTES:
            raise BrokenTable(f"has {state.st_size:,} bytes, more than any such list")
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _rows(csv.reader(file, strict=True), needed)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenTable(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BrokenTable(f"is not UTF-8 (byte {error.start})") from error
    except csv.Error as error:
        raise BrokenTable(f"is not CSV ({error})") from error


def _rows(lines: Iterable[list[str]], needed: Sequence[str]) -> list[dict[str, str]]:
    columns: list[str] = []
    rows: list[dict[str, str]] = []
    for line in lines:
        if not columns:
            columns = line
            missing = [name for name in needed if columns.count(name) != 1]
            if missing:
                raise BrokenTable(f"has no column {missing[0]!r}, or has it twice")
        elif line and len(line) != len(columns):
            raise BrokenTable(f"has {len(line)} cells in row {len(rows) + 1}, and {len(columns)} columns")
        elif line:
            rows.append({name: original(cell) for name, cell in zip(columns, line, strict=True)})
    if not columns:
        raise BrokenTable("is empty")
    return rows
