"""The pictures of a comparison, from its finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.methods.contract import HELD_OUT
from kdcache.metrics.early import confusion, per_class_gain, percent
from kdcache.metrics.significance import mean_std
from kdcache.report import figures
from kdcache.runs.ablation.replicates import Repeat, in_words, run_folder
from kdcache.runs.ablation.results import summary, values
from kdcache.runs.ablation.rows import Plan, Row
from kdcache.runs.run import Run
from kdcache.runs.train import Session

Scored = tuple[NDArray[np.float64], NDArray[np.int64], list[int]]


def draw(
    plan: Plan,
    out: Path,
    repeats: Sequence[Repeat],
    results: pd.DataFrame,
    against: str,
    metric: str,
    split: str,
    weights: str,
) -> None:
    """Write ``curve.png``, ``training.png``, ``gain.png`` and ``confusion.png``.

    All runs of a row count alike, whatever their split. There is no curve without degrees of progress, and no gain
    without a second row. The row whose gain and confusion are shown is the best other one by its mean on validation
    clips, where there are any.
    """
    levels = [m for m in dict.fromkeys(results["metric"]) if m.startswith("acc")]
    if len(levels) > 1:
        curves = {
            row.name: np.array([values(results, row.name, weights, split, m) for m in levels]).T
            for row in plan.runnable
        }
        figures.observed_curves(out / "curve.png", curves, f"{split}, {in_words(repeats)}")
    _draw_training(plan, out, repeats, metric)

    chosen = _best_other(plan, results, against, metric, weights)
    session = Session(say=lambda _: None)
    scored, gains = list[Scored](), list[NDArray[np.float64]]()
    for repeat in repeats:
        probs, y, classes = scores(_open(out, chosen, repeat, session), weights, split)
        scored.append((probs, y, classes))
        if chosen.name != against:
            base = scores(_open(out, plan.row(against), repeat, session), weights, split)[0]
            gains.append(per_class_gain(base, probs, y)[0])
    if gains:
        title = f"{chosen.name} over {against}, {split}"
        figures.class_gains(out / "gain.png", np.array(gains), classes, title)
    observed = percent(scored[0][0].shape[1])
    several = sorted({0, len(observed) // 2 - 1 if len(observed) > 2 else 0, len(observed) - 1})
    tables = {
        f"{observed[n]} % observed": np.sum([confusion(probs, y, n + 1) for probs, y, _ in scored], axis=0)
        for n in several
    }
    figures.confusions(out / "confusion.png", tables, classes, f"{chosen.name}, {split}")


def scores(run: Run, weights: str, split: str) -> Scored:
    """Probabilities ``[n, N, C]`` of labelled examples (N = 1 without degrees of progress), class indices, classes."""
    frame = run.predictions(weights)
    frame = frame[(frame["split"] == split) & frame[run.target].notna()]
    classes = [c for c in list[Any](frame.columns) if isinstance(c, int)]
    levels = frame["observed"].nunique() if "observed" in frame else 1
    y = np.searchsorted(np.array(classes), frame[run.target].to_numpy(np.int64)[::levels]).astype(np.int64)
    return frame[classes].to_numpy(np.float64).reshape(-1, levels, len(classes)), y, classes


def _draw_training(plan: Plan, out: Path, repeats: Sequence[Repeat], metric: str) -> None:
    panels: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for row in plan.runnable:
        for repeat in repeats:
            epochs = summary(Run(run_folder(out, row.slug, repeat)))["rows"]  # none for nearest neighbours
            for split in (s for s in HELD_OUT if epochs and f"{s}/{metric}" in epochs[0]):
                curve = np.array([epoch[f"{split}/{metric}"] for epoch in epochs])
                panels.setdefault(split, {}).setdefault(row.name, []).append(curve)
    if panels:
        figures.training_curves(out / "training.png", panels, metric)


def _best_other(plan: Plan, results: pd.DataFrame, against: str, metric: str, weights: str) -> Row:
    """The best row besides ``against``, which alone is its own."""
    split = next(s for s in HELD_OUT if (results["split"] == s).any())
    others = [row for row in plan.runnable if row.name != against] or [plan.row(against)]
    return max(others, key=lambda row: mean_std(values(results, row.name, weights, split, metric))[0])


def _open(out: Path, row: Row, repeat: Repeat, session: Session) -> Run:
    """A run on the session's opened cache."""
    run = Run(run_folder(out, row.slug, repeat))
    return Run(run.path, session.prepare(run.settings, run.options, {}))
