"""Text for people: aligned columns, sizes of files."""

from __future__ import annotations

import reprlib
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100  # of a page of help

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def short(value: object) -> str:
    """``repr`` of something from outside, for a sentence that says what is wrong, however long or deep it is."""
    return _SHORT.repr(value)


def aligned(rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> list[str]:
    """Rows of texts in columns as wide as their widest cell, two blanks between them.

    Args:
        rows: of equally many cells.
        numbers_from: columns from this one on are set flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths, numbers_from)).rstrip() for row in rows]


def aligned_markdown(text: str) -> str:
    """The same Markdown with the cells of each table as wide as their column."""
    lines, table = list[str](), list[list[str]]()
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        lines += _markdown(table)
        table = []
        lines.append(line)
    return "\n".join(lines[:-1])


def terms(pairs: Iterable[tuple[str, str]], width: int = WIDTH, indent: int = 26) -> str:
    """Terms and what they mean in two columns."""
    lines = []
    for term, meaning in pairs:
        filled = textwrap.wrap(meaning, width - indent, break_on_hyphens=False) or [""]
        if len(term) > indent - 4:
            lines.append(f"  {term}".rstrip())
        else:
            lines.append(f"  {term:{indent - 2}}{filled.pop(0)}".rstrip())
        lines += [" " * indent + line for line in filled if line]
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes in a unit of their magnitude: ``713 B``, ``1.5 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def _cells(row: Sequence[str], widths: Sequence[int], numbers_from: int | None) -> list[str]:
    return [
        cell.rjust(width) if numbers_from is not None and number >= numbers_from else cell.ljust(width)
        for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _markdown(table: list[list[str]]) -> list[str]:
    """One table: heading, rule, rows."""
    if len(table) < 2 or len({len(row) for row in table}) > 1:
        return [f"| {' | '.join(row)} |" for row in table]
    heading, _, *rows = table
    widths = [max(3, *map(len, column)) for column in zip(heading, *rows, strict=True)]
    padded = [heading, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(_cells(row, widths, None))} |" for row in padded]
