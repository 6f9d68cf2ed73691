"""Which rows are compared: those of a paper's table, of the user's own, or of a grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
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
    """What has to be known of every table of the method, and of this one."""
    reference: str = ""
    """Name of the row that the paper compares the others with; empty: the first that can be run."""
    gains: bool = False
    """Whether the paper prints differences to that row instead of numbers."""
    retrain: bool = False
    """Whether the paper trains on all training clips, see ``presets.retrains``."""

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Comparison:
        """From what ``dataclasses.asdict`` made of it, also in earlier versions."""
        rows = [
            TableRow(**row | {name: tuple(row.get(name, ())) for name in ("own", "fused")}) for row in content["rows"]
        ]
        return cls(**{**content, "rows": rows})

    @property
    def runnable(self) -> list[TableRow]:
        """Rows that are trained, in the order of the table; after training those that did not fail."""
        return [row for row in self.compared if not row.fused]

    @property
    def compared(self) -> list[TableRow]:
        """Rows that have numbers: those that are trained, and those that fuse them."""
        return [row for row in self.rows if not row.quoted and not row.failed]

    def without(self, problems: Mapping[str, str]) -> Comparison:
        """The same with the rows marked as failed whose names have a problem, or which fuse one of them."""
        known = dict(problems)
        for row in self.rows:
            if lost := [name for name in row.fused if name in problems]:
                known.setdefault(row.name, f"{lost[0]} failed, which it fuses.")
        marked = [replace(row, failed=known[row.name]) if row.name in known else row for row in self.rows]
        return replace(self, rows=marked)

    def against(self, asked: str | None = None) -> str:
        """Name of the trained row that others are compared with: the one asked for, the paper's, or the first.

        A row of the paper's table that stands for one of each stream column is named by the first of these; see
        ``reference_of``.
        """
        name = asked or self.reference
        found = next((row.name for row in self.runnable if name and name in (row.name, row.of)), None)
        return found or asked or self.runnable[0].name

    def reference_of(self, row: TableRow, against: str) -> TableRow | None:
        """What a row is compared with: the row ``against``, in the row's own column; None where there is none."""
        base = self.row(against)
        if row.column == base.column:
            return base
        return next((r for r in self.compared if (r.of, r.column) == (base.of, row.column)), None)

    def paper_gain(self, row: TableRow, base: TableRow, column: str) -> float | None:
        """By how much a row is above another in a column of the paper's table; None where the paper does not say."""
        if row.paper_gain is not None and base.paper_gain is not None:
            return row.paper_gain - base.paper_gain
        if column not in row.paper or column not in base.paper:
            return None
        return row.paper[column] - base.paper[column]

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
    base: dict[str, Any] = {}
    its = presets.Table("", "", [])
    if table is not None:
        if rows or preset:
            raise OptionError("A table has its own rows and preset: give either TABLE, or --row and --preset.")
        its = presets.table(method, table)
        known = its.rows
    else:
        if preset:
            base = presets.settings(method, preset) | presets.preset(method, preset)
            its = replace(its, retrain=presets.retrains(method, preset))
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
            slug = slug_of(name, [r.slug for r in found])
            own = tuple(dict.fromkeys([*row.own, *common, *point]))
            found.append(replace(row, name=name, options=options, slug=slug, own=own))
            if row.name and row.name == its.reference and point is points[0]:
                its = replace(its, reference=name)
    names = [row.name for row in found]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"Two rows are called {name!r}: give each its own name.")
    columns = list(dict.fromkeys(column for row in known for column in row.paper))
    note = " ".join(filter(None, (presets.note(method), its.note)))
    return Comparison(method, its.caption, columns, found, note, its.reference, its.gains, its.retrain)


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
    """``"both:alpha=0.5,beta=1"`` → its name and options, typed by the method; ``milestones=15,25`` stays one.

    Raises:
        OptionError: a text of another form, an unknown option, or one that is given twice.
    """
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise OptionError(f"--row {text!r}: write name:option=value,option=value.")
    sets: list[str] = []
    for part in rest.split(","):
        if "=" in part or not sets:
            sets += [part.strip()] * bool(part.strip())
        else:
            sets[-1] += f",{part.strip()}"
    options: dict[str, Any] = {}
    for each in sets:
        parsed = parse_set(method, [each])
        _refuse_again(options, parsed, f"--row {text!r}")
        options |= parsed
    return name.strip(), options


def parse_rows(method: str, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows in words → name → options, see ``parse_row``; ``OptionError`` also for two rows of one name."""
    rows: dict[str, dict[str, Any]] = {}
    for name, options in (parse_row(method, text) for text in texts):
        if name in rows:
            raise OptionError(f"--row {name!r} is given twice: give each row its own name.")
        rows[name] = options
    return rows


def _refuse_again(known: Container[str], names: Iterable[str], place: str) -> None:
    for name in names:
        if name in known:
            raise OptionError(f"{place}: {name} is given twice; leave one of them out.")


def parse_grid(method: str, sets: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """``["epochs=5", "alpha=0,0.5"]`` → options with one value, and those with several.

    Options that are sequences, such as ``milestones=15,25``, have one value.

    Raises:
        OptionError: an unknown option, or one that is given twice.
    """
    common: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        parts = value.split(",") if equals else [value]
        parsed = [parse_set(method, [f"{name}={part}" if equals else text]) for part in parts]
        name = next(iter(parsed[0]))  # as it is called today
        values = [each[name] for each in parsed]
        _refuse_again({*common, *grid}, [name], f"--set {text}")
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


def slug_of(name: str, taken: Sequence[str]) -> str:
    """A folder name for a row, unlike those taken."""
    plain = re.sub(r"[^a-z0-9.=]+", "-", name.lower()).strip("-.") or "row"
    return next(s for n in itertools.count(1) if (s := plain if n == 1 else f"{plain}-{n}") not in taken)
