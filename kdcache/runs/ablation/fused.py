"""Numbers of rows that fuse others: the mean of their class probabilities, run by run of equal seed, draw and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.log import quiet
from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.fuse import fuse
from kdcache.runs.presets import TableRow
from kdcache.runs.run import Run
from kdcache.seals import read_json, write_json

KEYS = {"last": "last", "best": "best@validation"}
"""Kind of weights → their key in a run's metrics."""
FUSED = "fused.json"  # in the folder that a run of the row would have: its numbers, and those that they come from


def fused_metrics(comparison: Comparison, row: TableRow, out: Path, replicate: Replicate) -> dict[str, Any]:
    """The metrics of one replicate of a row that fuses others, under the names of a run's ``metrics.json``.

    ``last`` and, where every part has a best epoch, ``best@validation``: split → target → metric in per cent. They are
    kept beside the runs and computed again where a part has changed.

    Raises:
        OptionError: the parts answer different questions, see ``fuse``.
    """
    parts = [Run(run_folder(out, comparison.row(name).slug, replicate)) for name in row.fused]
    target = parts[0].target
    wanted = {which: key for which, key in KEYS.items() if all(key in part.metrics for part in parts)}
    of = {name: part.metrics for name, part in zip(row.fused, parts, strict=True)}
    file = run_folder(out, row.slug, replicate) / FUSED
    if file.exists():
        kept = read_json(file, "delete it, and it is computed again")
        if kept.get("of") == of:
            return dict(kept["metrics"])
    with quiet():
        found = {key: fuse(parts, which=which) for which, key in wanted.items()}
    made = {key: {split: {target: m} for split, m in its.items()} for key, its in found.items()}
    write_json(file, {"of": of, "metrics": made})
    return made
