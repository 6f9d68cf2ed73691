"""Which rows are compared: those of a paper's table, of the user's own, or of a grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcache.errors import OptionError, unknown
from kdcache.methods import method as method_module
from kdcache.options import build, shown
from kdcache.runs import presets
from kdcache.runs.config import SETTABLE, RunSettings, own_names, parse_set
from kdcache.runs.presets import TableRow


@dataclass(frozen=True)
class Comparison:
    """The rows that are compared, and the table that they come from."""

    method: str
    caption: str
    """Of the paper's table; empty for rows of the user's own."""
    columns: list[str]
    """Of the paper's table, in its order."""
    rows: list[TableRow]
    note: str = ""
    """What has to be known of every table of the method."""

    @property
    def runnable(self) -> list[TableRow]:
        """Rows that can be run, in the order of the table; after training those that did not fail."""
        return [row for row in self.rows if not row.quoted and not row.failed]

    def without(self, problems: Mapping[str, str]) -> Comparison:
        """The same with the rows marked as failed whose names have a problem."""
        marked = [replace(row, failed=problems[row.name]) if row.name in problems else row for row in self.rows]
        return replace(self, rows=marked)

    @property
    def failed(self) -> dict[str, str]:
        """Name of each row that failed → why."""
        return {row.name: row.failed for row in self.rows if row.failed}

    def method_of(self, row: TableRow) -> str:
        """The method that trains a row."""
        return row.method or self.method

    @property
    def of_others(self) -> dict[str, list[str]]:
        """Names of the rows that another method trains, by that method."""
        found: dict[str, list[str]] = {}
        for row in self.runnable:
            if self.method_of(row) != self.method:
                found.setdefault(row.method, []).append(row.name)
        return found

    def row(self, name: str) -> TableRow:
        """A row that can be run, by name; ``OptionError`` with the nearest name for one that does not exist."""
        found = {row.name: row for row in self.runnable}
        if name not in found:
            raise unknown("row", name, list(found))
        return found[name]


def choose_rows(
    method: str,
    table: str | None,
    rows: Mapping[str, Mapping[str, Any]],
    grid: Mapping[str, Sequence[Any]],
    preset: str | None,
    common: Mapping[str, Any],
    only: Sequence[str] = (),
) -> Comparison:
    """The rows of a comparison, their options checked: (table or own rows) × grid, each with the common options.

    Options of ``common`` and ``grid`` go on top of a row's, a row's on top of the preset's. They must be options of
    every row's method, which in a table may be another one. ``only`` names the rows of the table that are wanted.

    Raises:
        OptionError: unknown names or options, a table together with rows or a preset, fewer than one row.
    """
    grid, common = (own_names(method, given) for given in (grid, common))
    known: list[TableRow]
    caption, base, note = "", {}, presets.note(method)
    if table is not None:
        if rows or preset:
            raise OptionError("A table has its own rows and preset: give either TABLE, or --row and --preset.")
        its = presets.table(method, table)
        caption, known = its.caption, its.rows
    else:
        base = presets.preset(method, preset) if preset else {}
        given = {name: own_names(method, options) for name, options in rows.items()}
        known = [TableRow(name, options, {}, own=tuple(options)) for name, options in given.items()]
    if not known:
        known = [TableRow("", {}, {})]
    if only:
        known = _picked(known, only, table)
    found: list[TableRow] = []
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for row in known:
        if row.quoted:
            found.append(row)
            continue
        for point in points:
            name = ", ".join([row.name] * bool(row.name) + [f"{k}={shown(v)}" for k, v in point.items()]) or method
            options = {**base, **row.options, **common, **point}
            _check(method, row.method or method, name, options)
            slug = _slug(name, [r.slug for r in found])
            own = tuple(dict.fromkeys([*row.own, *common, *point]))
            found.append(TableRow(name, options, row.paper, slug=slug, method=row.method, own=own))
    names = [row.name for row in found]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"Two rows are called {name!r}: give each its own name.")
    columns = list(dict.fromkeys(column for row in known for column in row.paper))
    return Comparison(method, caption, columns, found, note)


def _picked(rows: Sequence[TableRow], only: Sequence[str], table: str | None) -> list[TableRow]:
    """The rows of these names, in the order of the table."""
    if table is None:
        raise OptionError(f"--only {only[0]} picks rows of a table: name a TABLE, or leave it out.")
    known = [row.name for row in rows if not row.quoted]
    for name in only:
        if name not in known:
            if name in [row.name for row in rows]:
                raise OptionError(f"--only {name!r}: {table} only quotes that row; choose from {', '.join(known)}.")
            raise unknown(f"row of {table}", name, known)
    return [row for row in rows if row.name in only]


def parse_row(method: str, text: str) -> tuple[str, dict[str, Any]]:
    """``"both:alpha=0.5,beta=1"`` → its name and options, typed by the method; ``milestones=15,25`` stays one."""
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise OptionError(f"--row {text!r}: write name:option=value,option=value.")
    sets: list[str] = []
    for part in rest.split(","):
        if "=" in part or not sets:
            sets += [part.strip()] * bool(part.strip())
        else:
            sets[-1] += f",{part.strip()}"
    return name.strip(), parse_set(method, sets)


def parse_grid(method: str, sets: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """``["epochs=5", "alpha=0,0.5"]`` → options with one value, and those with several.

    Options that are sequences, such as ``milestones=15,25``, have one value.
    """
    common: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        parts = value.split(",") if equals else [value]
        parsed = [parse_set(method, [f"{name}={part}" if equals else text]) for part in parts]
        name = next(iter(parsed[0]))  # as it is called today
        values = [each[name] for each in parsed]
        if len(values) == 1 or isinstance(values[0], tuple):
            common |= parse_set(method, [text])
        else:
            grid[name] = values
    return common, grid


def _check(table: str, method: str, name: str, options: dict[str, Any]) -> None:
    """Refuse a row before anything is trained, not after hours; ``table`` is the method of the table."""
    settings = {key: value for key, value in options.items() if key in SETTABLE}
    try:
        build(RunSettings, {"method": method, "shards": "", **settings})
        build(method_module(method).Options, {k: v for k, v in options.items() if k not in settings})
    except OptionError as error:
        of = "" if method == table else f", which {method} trains"
        raise OptionError(f"Row {name!r}{of}: {error}") from error


def _slug(name: str, taken: Sequence[str]) -> str:
    """A folder name for a row, unlike those taken."""
    plain = re.sub(r"[^a-z0-9.=]+", "-", name.lower()).strip("-.") or "row"
    return next(s for n in itertools.count(1) if (s := plain if n == 1 else f"{plain}-{n}") not in taken)
