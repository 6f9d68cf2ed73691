"""``evaluate`` computes the metrics of a finished run again, from its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.runs.folder import check_files
from kdcache.runs.run import Run


def evaluate(run: Run | str | Path, split: str | None = None, many_shot: int | None = None) -> dict[str, Any]:
    """Metrics of a finished run, computed from its checkpoints: see ``kdcache.runs.run.Run.evaluate``.

    Args:
        run: a ``Run`` or its folder.
        split: ``validation``, ``test``, ``train``; None: every held-out split.
        many_shot: also give recalls over the classes with more training samples than this (EPIC-KITCHENS-55: 100).

    Raises:
        OptionError: no run, one that has not finished, one with a damaged file, or an unknown split.
        WeightsError: damaged weights.
    """
    opened = run if isinstance(run, Run) else Run(run)
    check_files(opened.path)
    return opened.evaluate(split, many_shot)
