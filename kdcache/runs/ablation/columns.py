"""Columns of a paper's table that are streams: every row is run once for each, and once more for those that are fused.

``I3D`` of a table with columns rgb, flow and both becomes three rows of the comparison: ``I3D, rgb`` and ``I3D, flow``,
which are trained as any row is, and ``I3D, both``, the late fusion of these two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.runs.ablation.replicates import shards_of
from kdcache.runs.ablation.rows import Comparison, slug_of
from kdcache.runs.presets import StreamColumn, Table, TableRow
from kdcache.store import Cache


def with_streams(comparison: Comparison, table: Table, shards: str | Path, stream: str | None = None) -> Comparison:
    """The rows of a table as they can be run on what a cache holds.

    Rows are repeated for each of the table's stream columns. A column whose stream the cache lacks is left out, as is
    a row that reads a stream of its own which is not there; the comparison's note and the log say so.

    Args:
        comparison: the rows, as ``choose_rows`` gives them.
        table: which they are of.
        shards: folder of the cache, of which the first draw's is looked at where there is one a draw; it is opened only
            where the table names streams.
        stream: the one that the call asks for: only columns of that stream remain.

    Raises:
        OptionError: the cache lacks what every row reads.
        StoreError: a damaged cache.
    """
    if not table.columns and not any("stream" in row.options for row in table.rows):
        return comparison
    cached = Cache(shards_of(shards, None)).streams
    said: list[str] = []
    rows = [_readable(row, cached, said) for row in comparison.rows]
    if stream is None and any("stream" in row.options for row in rows):  # else there may be but one that will do
        rows = [_named(row, table.stream, cached, said) for row in rows]
    if all(row.quoted for row in rows):
        raise OptionError(f"No row of {table.name} can be run on {shards}: {' '.join(said)}")
    columns, why = _available(table.columns, cached, stream)
    said += why
    for sentence in said:
        logger.warning(sentence)
    comparison = replace(comparison, rows=rows, note=" ".join(filter(None, (comparison.note, *said))))
    if not columns:
        return comparison
    found: list[TableRow] = []
    for row in rows:
        found += _in_columns(row, columns, table, found)
    return replace(comparison, rows=found, columns=[] if table.gains else [table.metric])


def _readable(row: TableRow, cached: Sequence[str], said: list[str]) -> TableRow:
    """The row; one that is only quoted where it reads a stream of its own that is not cached."""
    own = row.options.get("stream")
    if row.quoted or own is None or own in cached:
        return row
    said.append(f"{row.name} is not run: it reads {own}, which the cache lacks.")
    return replace(row, quoted=True, options={}, note="")


def _named(row: TableRow, stream: str, cached: Sequence[str], said: list[str]) -> TableRow:
    """The row; where it names no stream, reading the table's."""
    if row.quoted or "stream" in row.options:
        return row
    if stream not in cached:
        said.append(
            f"{row.name} is not run: it reads {stream}, which the cache lacks; another can be named (--stream)."
        )
        return replace(row, quoted=True, options={}, note="")
    return replace(row, options={**row.options, "stream": stream})


def _available(
    columns: Mapping[str, StreamColumn], cached: Sequence[str], stream: str | None
) -> tuple[dict[str, StreamColumn], list[str]]:
    """The columns that can be filled, and why the others cannot."""
    usable = [s for s in cached if stream in (None, s)]
    found = {name: column for name, column in columns.items() if column.stream in usable}
    found |= {name: column for name, column in columns.items() if column.fuse and set(column.fuse) <= set(found)}
    lost = {name: column for name, column in columns.items() if name not in found}
    if not lost:
        return found, []
    where = "the cache lacks" if stream is None else f"only {stream} is asked for, not"
    missing = [f"{name} ({where} {column.stream})" for name, column in lost.items() if column.stream]
    missing += [f"{name} (which fuses {' and '.join(column.fuse)})" for name, column in lost.items() if column.fuse]
    return found, [f"Columns of the paper's table that are left out: {', '.join(missing)}."]


def _in_columns(
    row: TableRow, columns: Mapping[str, StreamColumn], table: Table, before: Sequence[TableRow]
) -> list[TableRow]:
    """One row of the table as one row for each column that it has a place in."""
    named = {name: f"{row.name}, {name}" for name in columns}
    found: list[TableRow] = []
    for name, column in columns.items():
        if row.quoted and name not in row.paper:
            continue
        its = {table.metric: row.paper[name]} if name in row.paper and not table.gains else {}
        gain = row.paper.get(name) if table.gains else None
        made = replace(row, name=named[name], of=row.name, column=name, paper=its, paper_gain=gain)
        if not row.quoted:
            slug = slug_of(f"{row.slug}-{name}", [r.slug for r in (*before, *found)])
            options = row.options | ({"stream": column.stream} if column.stream else {})
            made = replace(made, slug=slug, options=options, fused=tuple(named[part] for part in column.fuse))
        found.append(made)
    return found
