"""Which runs of a comparison read features whose backbone was fitted on the labels of their own training clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.run import Run


@dataclass(frozen=True)
class SeenLabels:
    """What the runs of some rows have in common: the smallest and largest counts over draws, splits and seeds."""

    rows: tuple[str, ...]
    runs: tuple[int, int]
    """Of each row: runs that say so, and all runs."""
    clips: tuple[int, int]
    """Training clips whose labels the backbone was fitted on and that are not cross-fitted."""
    of: tuple[int, int]
    """Training clips."""


def seen_labels(comparison: Comparison, folder: Path, replicates: Sequence[Replicate]) -> list[SeenLabels]:
    """Of the rows for which the backbone has seen such labels; runs from before this was recorded do not say."""
    found: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for row in comparison.runnable:
        known = [Run(run_folder(folder, row.slug, each)).metrics.get("fitted_on_training") for each in replicates]
        pairs = [(int(one["clips"]), int(one["of"])) for one in known if one]
        if pairs:
            clips, of = zip(*pairs, strict=True)
            counts = ((len(pairs), len(known)), (min(clips), max(clips)), (min(of), max(of)))
            found.setdefault(counts, []).append(row.name)
    return [SeenLabels(tuple(rows), *counts) for counts, rows in found.items()]
