"""Several runs as one: the mean of their class probabilities, as for RGB and flow together in the paper's Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdcache.errors import OptionError
from kdcache.metrics.topk import measure

if TYPE_CHECKING:
    from kdcache.runs.run import Run


def fuse(
    runs: Sequence[Run | str | Path], split: str | None = None, which: str = "last"
) -> dict[str, dict[str, float]]:
    """Metrics of the mean softmax of several runs on the pairs that they all held out. [reconstructed: the mean]

    Args:
        runs: finished runs or their folders, with one target and the same classes and held-out pairs.
        split: one held-out split; None: each of them.
        which: ``last`` or ``best`` weights of every run.

    Returns:
        split → metric in per cent.

    Raises:
        OptionError: runs of different targets, classes or pairs, or an unknown split.
    """
    from kdcache.runs.run import Run

    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    first = opened[0]
    tables = [run.predictions(which).set_index("pair") for run in opened]
    known = ["clip_id", "split", first.target]
    for run, table in zip(opened[1:], tables[1:], strict=True):
        if run.target != first.target or list(table.columns) != list(tables[0].columns):
            raise OptionError(f"{run.path} predicts other classes than {first.path}: fuse runs of one target.")
        if set(table.index) != set(tables[0].index):
            raise OptionError(f"{run.path} held out other pairs than {first.path}: fuse runs of one split.")
    classes = [c for c in tables[0].columns if c not in known]
    number = {int(c): i for i, c in enumerate(classes)}
    labelled = tables[0][tables[0][first.target].notna()]
    splits = list(dict.fromkeys(labelled["split"])) if split is None else [split]
    results = {}
    for name in splits:
        here = labelled[labelled["split"] == name]
        if here.empty:
            raise OptionError(f"{first.path} holds out no labelled pairs of split {name!r}.")
        scores = np.mean([t.loc[here.index, classes].to_numpy(np.float64) for t in tables], axis=0)
        y = np.array([number[int(label)] for label in here[first.target]])
        results[name] = measure(scores, y)
    return results
