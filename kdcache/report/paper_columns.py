"""The columns of a paper's table that stand for streams, printed as the paper has them; and what its rows are not."""

from __future__ import annotations

from kdcache.metrics.significance import mean_std
from kdcache.report.effects import signed
from kdcache.report.tables import spread
from kdcache.runs.ablation.conclusion import Conclusion
from kdcache.runs.ablation.replicates import in_words
from kdcache.runs.ablation.results import UNIT, WEIGHTS, differences, unit_means, values, weights_of
from kdcache.runs.presets import TableRow


def paper_columns(conclusion: Conclusion) -> str:
    """Markdown: for each kind of weights the rows by columns, ours, the paper's and the difference; notes on rows.

    Ours are means ± std over units, each the mean over its seeds; over seeds where there is one unit. In a table of
    gains they are of the differences to the reference row's run of the same split, draw and seed. Empty where the table
    has neither stream columns nor notes.
    """
    c, lines = conclusion, list[str]()
    if any(row.column for row in c.comparison.rows):
        lines += [
            "## The paper's columns",
            "",
            "The paper's numbers are of its own data set, features and networks.",
            "",
        ]
        for weights in weights_of(c.results):
            base = c.comparison.row(c.against).of
            what = f"gain in {c.monitor} over {base}" if c.comparison.gains else c.monitor
            lines += [f"{c.split.capitalize()}, {WEIGHTS[weights]}, {in_words(c.replicates)}: {what}", ""]
            lines += [*_pivot(c, weights), ""]
    notes = {row.of or row.name: row.note for row in c.comparison.rows if row.note}
    if notes:
        lines += ["Rows that are not the same thing as the paper's:", ""]
        lines += [*(f"- {name}: {note}" for name, note in notes.items()), ""]
    return "\n".join(lines)


def _pivot(conclusion: Conclusion, weights: str) -> list[str]:
    """A line for each row of the paper's table, and below it the paper's numbers and the differences to them."""
    rows = conclusion.comparison.rows
    names = list(dict.fromkeys(row.of for row in rows if row.of))
    columns = max(([row.column for row in rows if row.of == name] for name in names), key=len)
    lines = [f"| {' | '.join(['row', *columns])} |", "|" + " --- |" * (len(columns) + 1)]
    for name in names:
        cells = {row.column: row for row in rows if row.of == name}
        paper = {column: _paper(conclusion, row) for column, row in cells.items()}
        theirs = [f"{p:.1f}" if (p := paper.get(column)) is not None else "" for column in columns]
        if all(row.quoted for row in cells.values()):
            lines.append(f"| {name} (not run): paper | {' | '.join(theirs)} |")
            continue
        ours = {column: _ours(conclusion, row, weights) for column, row in cells.items()}
        lines.append(f"| **{name}** | {' | '.join(spread(ours.get(c, [])) for c in columns)} |")
        if any(theirs):
            gaps = {c: mean_std(v)[0] - p for c, v in ours.items() if v and (p := paper[c]) is not None}
            lines.append(f"| ↳ paper | {' | '.join(theirs)} |")
            lines.append(f"| ↳ ours − paper | {' | '.join(signed(gaps[c]) if c in gaps else '' for c in columns)} |")
    return lines


def _paper(conclusion: Conclusion, row: TableRow) -> float | None:
    return row.paper_gain if conclusion.comparison.gains else row.paper.get(conclusion.monitor)


def _ours(conclusion: Conclusion, row: TableRow, weights: str) -> list[float]:
    """A row's numbers, or their differences to the reference; none where a run of either failed."""
    c = conclusion
    if row.failed or row.quoted:
        return []
    several = len(c.results.drop_duplicates(list(UNIT))) > 1
    if not c.comparison.gains:
        of = unit_means if several else values
        return of(c.results, row.name, weights, c.split, c.monitor)
    base = c.comparison.reference_of(row, c.against)
    if base is None:
        return []
    units = differences(c.results, row.name, base.name, weights, c.split, c.monitor)
    return [mean_std(seeds)[0] for seeds in units] if several else units[0]
