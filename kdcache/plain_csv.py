"""CSV files of a million rows: the bytes, where cells end, and columns made of them when they are asked for.

Taken are files in which every comma and every line end is one: without quotes, blank lines or rows of another length.
Of any other file ``plain_table`` gives ``None``, and a parser that goes through it cell by cell says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**24  # bytes that are looked at together
_ROWS = 2**13  # rows of which a column's texts are cut at once
_LONGEST = 100_000  # characters of a cell; ``csv`` refuses longer ones
_WIDEST = 64  # bytes of cells that are compared with those before them …
_RUN = 10  # … where so many on average are alike
_DIGITS = 9
_LOOK = 1000  # cells after which is decided whether a column repeats itself


class TextTable(Protocol):
    """Columns of text."""

    names: list[str]
    rows: int

    def texts(self, column: str) -> list[str]:
        """The cells of a column; equal ones are one object in a column that repeats itself."""
        ...

    def cell(self, column: str, row: int) -> str:
        """One of them."""
        ...

    def digits(self, column: str) -> NDArray[np.int64] | None:
        """The cells as whole numbers, -1 where they are empty; ``None`` where that takes looking at each."""
        ...

    def fixed(self, column: str, width: int) -> NDArray[np.bytes_]:
        """The cells of so many bytes, S<width> [rows]; those of another length are empty."""
        ...


class ListTable:
    """A ``TextTable`` that was read cell by cell."""

    def __init__(self, columns: Mapping[str, list[str]]) -> None:
        self.names = list(columns)
        self.rows = len(next(iter(columns.values()), []))
        self._columns = columns

    def texts(self, column: str) -> list[str]:
        """See ``TextTable``."""
        return self._columns[column]

    def cell(self, column: str, row: int) -> str:
        """See ``TextTable``."""
        return self._columns[column][row]

    def digits(self, column: str) -> NDArray[np.int64] | None:
        """See ``TextTable``."""
        return None

    def fixed(self, column: str, width: int) -> NDArray[np.bytes_]:
        """See ``TextTable``."""
        cells = [text.encode() for text in self._columns[column]]
        return np.array([cell if len(cell) == width else b"" for cell in cells], f"S{width}")


class PlainTable:
    """A ``TextTable`` over the bytes of a file."""

    def __init__(self, data: bytes, names: Sequence[str], ends: NDArray[np.unsignedinteger]) -> None:
        self.data = data
        self.names = list(names)
        self.rows = len(ends) // len(names) - 1
        self._ends = ends  # of all cells, row by row, the header's first
        self._at = {name: i for i, name in enumerate(names)}

    def texts(self, column: str) -> list[str]:
        """See ``TextTable``."""
        begins, ends = self._places(column)
        found: list[str] = []
        shared: dict[str, str] | None = None
        width = int((ends - begins).max(initial=0))
        runs = 0 < width <= _WIDEST and _RUN * len(self._runs(begins[:_LOOK], ends[:_LOOK], width)) < min(
            _LOOK, self.rows
        )
        for first in range(0, self.rows, _ROWS):
            begin, end = begins[first : first + _ROWS], ends[first : first + _ROWS]
            if runs:
                starts = self._runs(begin, end, width)
                cells = [
                    self.data[a:b].decode() for a, b in zip(begin[starts].tolist(), end[starts].tolist(), strict=True)
                ]
                for cell, count in zip(cells, np.diff(starts, append=len(begin)).tolist(), strict=True):
                    found += [cell] * count
                continue
            base = int(begin[0])
            piece = self.data[base : int(end[-1])]
            places = zip((begin - base).tolist(), (end - base).tolist(), strict=True)
            if piece.isascii():
                text = piece.decode("ascii")
                cells = [text[a:b] for a, b in places]
            else:
                cells = [piece[a:b].decode() for a, b in places]
            if first == 0:
                shared = {} if 2 * len(set(cells[:_LOOK])) < len(cells[:_LOOK]) else None
            if shared is not None:
                cells = [shared.setdefault(cell, cell) for cell in cells]
            found += cells
        return found

    def _runs(self, begins: NDArray[np.int64], ends: NDArray[np.int64], width: int) -> NDArray[np.intp]:
        """Where cells begin that are not as those before them, of cells of at most ``width`` bytes; or a few too many.

        What follows a cell is compared too, so of a column of cells of one length only.
        """
        if not len(begins) or begins[-1] + width > len(self.data):
            return np.arange(len(begins))
        cells = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self.data, np.uint8), width)[begins]
        length = ends - begins
        other = (cells[1:] != cells[:-1]).any(axis=1) | (length[1:] != length[:-1])
        return np.concatenate([[0], np.flatnonzero(other) + 1])

    def digits(self, column: str) -> NDArray[np.int64] | None:
        """See ``TextTable``."""
        begins, ends = self._places(column)
        length = ends - begins
        if int(length.max(initial=0)) > _DIGITS:
            return None
        data = np.frombuffer(self.data, np.uint8)
        found = np.zeros(self.rows, np.int64)
        for place in range(int(length.max(initial=0))):
            there = np.flatnonzero(length > place)
            digit = data[begins[there] + place].astype(np.int64) - ord("0")
            if ((digit < 0) | (digit > 9)).any():
                return None
            found[there] = 10 * found[there] + digit
        found[length == 0] = -1
        return found

    def cell(self, column: str, row: int) -> str:
        """See ``TextTable``."""
        at = (row + 1) * len(self.names) + self._at[column]
        return self.data[int(self._ends[at - 1]) + 1 : int(self._ends[at])].decode()

    def fixed(self, column: str, width: int) -> NDArray[np.bytes_]:
        """See ``TextTable``."""
        begins, ends = self._places(column)
        found = np.zeros((self.rows, width), np.uint8)
        fits = ends - begins == width
        if fits.any():
            windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self.data, np.uint8), width)
            found[fits] = windows[begins[fits]]
        return found.view(f"S{width}")[:, 0]

    def _places(self, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the cells of a column begin and end."""
        at, step = len(self.names) + self._at[column], len(self.names)
        return self._ends[at - 1 : -1 : step].astype(np.int64) + 1, self._ends[at::step].astype(np.int64)


def plain_table(data: bytes) -> PlainTable | None:
    """A file's bytes as a table; ``None`` where that takes a parser, or where a parser would refuse it."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if any(mark in data for mark in (b'"', b"\r", b"\0", b"\n\n")) or data[:1] in (b"", b"\n", b"\xef"):
        return None
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return None
    data = data if data.endswith(b"\n") else data + b"\n"
    names = data[: data.index(b"\n")].decode().split(",")
    if len(names) < 2 or len(set(names)) < len(names):
        return None
    ends = _ends(data)
    whole, rest = divmod(len(ends), len(names))
    lines = np.frombuffer(data, np.uint8)[ends[len(names) - 1 :: len(names)]] == ord("\n")
    if rest or not lines.all() or whole != data.count(b"\n"):
        return None
    if int(np.diff(ends).max(initial=0)) > _LONGEST:
        return None
    return PlainTable(data, names, ends)


def _ends(data: bytes) -> NDArray[np.unsignedinteger]:
    """Where commas and line ends are."""
    every = np.frombuffer(data, np.uint8)
    kind = np.uint32 if len(data) < 2**32 else np.uint64
    found = []
    for first in range(0, len(every), _CHUNK):
        piece = every[first : first + _CHUNK]
        found.append((np.flatnonzero((piece == ord(",")) | (piece == ord("\n"))) + first).astype(kind))
    return np.concatenate(found)
