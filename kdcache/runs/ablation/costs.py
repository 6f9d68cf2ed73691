"""What an answer of each row of a comparison costs; times that were measured once are kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.csv_text import original_frame
from kdcache.errors import KdcacheError
from kdcache.log import quiet
from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.cost import cost
from kdcache.runs.latency import Answering, side_by_side
from kdcache.runs.run import Run

COSTS = "cost.csv"
COUNTS, TIMES = ["parameters", "multiply_adds", "flow_fields"], ["seconds", "flow_seconds", "device", "source"]
COLUMNS = ["row", *COUNTS, *TIMES, "problem"]
REPEATS = 5


def costs_of_rows(
    comparison: Comparison, folder: Path, replicate: Replicate, source: str | Path | None = None
) -> pd.DataFrame:
    """The cost of each row's first run; what fails is a problem of its row, never an error.

    Args:
        comparison: whose rows.
        folder: of the comparison.
        replicate: the run of each row that stands for it.
        source: to answer for, by all rows in turns; None: times that ``cost.csv`` holds for the same counts stay.

    Returns:
        ``row`` and the fields of ``Cost`` (NA where it is not known), ``source`` (its name), and ``problem``, a
        sentence or empty.
    """
    found: list[dict[str, Any]] = []
    runs: dict[str, Run] = {}
    for row in comparison.runnable:
        known: dict[str, Any] = dict.fromkeys(COLUMNS) | {"row": row.name, "problem": ""}
        try:
            with quiet():
                run = Run(run_folder(folder, row.slug, replicate))
                known |= {name: value for name, value in asdict(cost(run)).items() if name in COUNTS}
            runs[row.name] = run
        except Exception as error:  # a report is worth more than this part of it, whatever a method's network does
            known["problem"] = _sentence(error)
        found.append(known)
    if source is not None:
        _measure(found, runs, Path(source))
    table = pd.DataFrame(found, columns=COLUMNS).astype(dict.fromkeys(COUNTS, "Int64"))
    return table if source is not None else _with_kept(table, folder / COSTS)


def _measure(found: list[dict[str, Any]], runs: dict[str, Run], source: Path) -> None:
    """Fill the times of the rows that can answer for a source in."""
    answering: dict[str, Answering] = {}
    of_row = {known["row"]: known for known in found}
    with quiet():
        for name, run in runs.items():
            try:
                answering[name] = Answering(run, source, None, None, None)
            except Exception as error:
                of_row[name]["problem"] = _sentence(error)
        times = side_by_side(list(answering.values()), REPEATS)
    for (name, one), (seconds, flow) in zip(answering.items(), times, strict=True):
        rounded = (float(f"{value:.6g}") for value in (seconds, flow))  # as the file has them
        of_row[name] |= dict(zip(TIMES, (*rounded, one.device, source.name), strict=True))


def _with_kept(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows with the times that a file holds for the same row and counts."""
    if not path.exists():
        return table
    try:
        before = original_frame(pd.read_csv(path))[["row", *COUNTS, *TIMES]].astype(dict.fromkeys(COUNTS, "Int64"))
    except (ValueError, KeyError, TypeError):  # not a file of this version
        return table
    kept = table.drop(columns=TIMES).merge(before, on=["row", *COUNTS], how="left")
    return kept[COLUMNS]


def _sentence(error: Exception) -> str:
    if isinstance(error, KdcacheError):
        return str(error)
    return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
