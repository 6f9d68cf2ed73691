"""What answers cost as a table in Markdown."""

from __future__ import annotations

import pandas as pd

UNKNOWN = "–"


def cost_section(costs: pd.DataFrame) -> list[str]:
    """The table of a comparison, what its numbers are, and why some are missing; see ``costs_of_rows``."""
    lines = ["Cost of an answer", "", *cost_table(costs, "row"), ""]
    lines.append(meaning(costs))
    problems = costs[costs["problem"] != ""]
    for problem, rows in problems.groupby("problem", sort=False)["row"]:
        lines += ["", f"{UNKNOWN} {', '.join(rows)}: {problem}"]
    return lines


def meaning(costs: pd.DataFrame) -> str:
    """What the numbers of a table are."""
    text = (
        "Of the network that answers and of the backbones below what it reads, for one clip; a multiplication with its "
        "addition is one, and the arithmetic of TV-L1 is not in it."
    )
    timed = costs[costs["seconds"].notna()]
    if len(timed):
        where = ", ".join(timed[["source", "device"]].drop_duplicates().agg(" on ".join, axis=1))
        text += f" Latency: from the opened source to probabilities, all loaded, median, in turn ({where})."
    return text


def cost_table(costs: pd.DataFrame, first: str) -> list[str]:
    """A line for each row of a table with the fields of ``Cost``; latency stands in it where any was measured.

    Args:
        costs: of each row.
        first: its column that names a row; after it comes ``inputs``, where there is such a column.
    """
    columns = [first, *(["inputs"] if "inputs" in costs else []), "parameters (M)", "multiply-adds (G)", "flow fields"]
    timed = costs["seconds"].notna().any()
    columns += ["latency (ms)", "of it flow"] if timed else []
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in costs.to_dict("records"):
        cells = [str(row[first])]
        cells += [", ".join(row["inputs"])] if "inputs" in costs else []
        cells += [_scaled(row["parameters"], 1e6), _scaled(row["multiply_adds"], 1e9), _scaled(row["flow_fields"], 0)]
        if timed and pd.isna(row["seconds"]):
            cells += [UNKNOWN, UNKNOWN]
        elif timed:
            cells += [f"{1000 * row['seconds']:.1f}", f"{100 * row['flow_seconds'] / row['seconds']:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _scaled(number: int | None, unit: float) -> str:
    """In units, with three decimals, or two digits of what is smaller than a tenth; whole without a unit."""
    if pd.isna(number):
        return UNKNOWN
    assert number is not None
    if not unit:
        return f"{number}"
    return f"{number / unit:.3f}" if number >= unit / 10 or not number else f"{number / unit:.2g}"
