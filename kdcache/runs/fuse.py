"""Several runs as one: the mean of their class probabilities, as for RGB and flow together in the paper's Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.methods import method
from kdcache.methods.contract import MetricsFn
from kdcache.options import build
from kdcache.runs.run import Run


def fuse(
    runs: Sequence[Run | str | Path], split: str | None = None, which: str = "last"
) -> dict[str, dict[str, float]]:
    """Metrics of the mean softmax of several runs on the examples that all of them held out. [reconstructed: the mean]

    The metrics are those of the method: of early recognition ``auc`` and the accuracy at each observation ratio, at
    which the probabilities are averaged one by one, as at each anticipation time of ``rulstm``; of anticipation
    ``top1``, ``top5`` and the recalls.

    Args:
        runs: finished runs or their folders, with one target and the same classes, held-out examples and levels.
        split: one held-out split; None: each of them.
        which: ``last`` or ``best`` weights of every run.

    Returns:
        split → metric in per cent.

    Raises:
        OptionError: no run, runs that differ in target, classes, held-out examples or levels, or an unknown split.
    """
    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    if not opened:
        raise OptionError("Name at least one run to fuse.")
    first = opened[0]
    for run in opened[1:]:
        if run.target != first.target:
            raise OptionError(
                f"{run.path} predicts {run.target}, {first.path} {first.target}: fuse runs of one target."
            )
    answers = [_answers(run, which) for run in opened]
    for run, its in zip(opened[1:], answers[1:], strict=True):
        _check(run, its, first, answers[0])
    order = answers[0].probabilities.index
    mean = np.mean([its.probabilities.loc[order].to_numpy() for its in answers], axis=0)
    measure = _measure(first)
    examples, number = answers[0].examples, {c: i for i, c in enumerate(list[Any](answers[0].probabilities.columns))}
    labelled = examples[first.target].notna()
    splits = list(dict.fromkeys(examples["split"][labelled])) if split is None else [split]
    results = {}
    for name in splits:
        here = (labelled & (examples["split"] == name)).to_numpy()
        if not here.any():
            raise OptionError(f"{first.path} holds out no labelled {answers[0].what} of split {name!r}.")
        y = np.array([number[int(label)] for label in examples[first.target][here]])
        results[name] = {m: float(v) for m, v in measure(_by_example(mean, answers[0])[here], y).items()}
    return results


@dataclass(frozen=True)
class _Answers:
    """What a run says of its held-out examples."""

    what: str
    """``pairs`` or ``clips``."""
    examples: pd.DataFrame
    """Index: name of the example; columns ``split`` and the target."""
    levels: list[float] | None
    """Observed percentages or anticipation times, as answered; None where an example is answered once."""
    probabilities: pd.DataFrame
    """Float64, a row for each example, or for each example and level in turn; a column for each class."""


def _answers(run: Run, which: str) -> _Answers:
    frame = run.predictions(which)
    name = "pair" if "pair" in frame else "clip_id"
    axis = next((c for c in frame.columns if c in ("observed", "tau_s")), None)
    levels = list(dict.fromkeys(frame[axis])) if axis else None
    classes = [c for c in list[Any](frame.columns) if isinstance(c, int)]
    return _Answers(
        what="pairs" if name == "pair" else "clips",
        examples=frame.drop_duplicates(name).set_index(name)[["split", run.target]],
        levels=levels,
        probabilities=frame.set_index([name, axis] if axis else [name])[classes].astype(np.float64),
    )


def _check(run: Run, its: _Answers, first: Run, others: _Answers) -> None:
    """``OptionError`` where two runs do not answer the same question."""
    if its.what != others.what:
        raise OptionError(
            f"{run.path} predicts {its.what}, {first.path} {others.what}: fuse runs of methods with like examples."
        )
    if its.levels != others.levels:
        one, other = (", ".join(f"{level:g}" for level in a.levels or ()) or "once" for a in (its, others))
        raise OptionError(
            f"{run.path} answers at other levels or times ({one}) than {first.path} ({other}): fuse runs "
            "with equal ones."
        )
    if list(its.probabilities.columns) != list(others.probabilities.columns):
        raise OptionError(f"{run.path} predicts other classes than {first.path}: fuse runs on the same classes.")
    if not its.examples.sort_index().equals(others.examples.sort_index()):
        raise OptionError(
            f"{run.path} holds out other {its.what} than {first.path}, or under other splits or labels: "
            "fuse runs that held out the same."
        )


def _by_example(mean: NDArray[np.float64], answers: _Answers) -> NDArray[np.float64]:
    """``[n, C]``, with levels ``[n, N, C]``."""
    return mean.reshape(len(answers.examples), len(answers.levels), -1) if answers.levels else mean


def _measure(run: Run) -> MetricsFn:
    """How the run's method measures what it answers."""
    module = method(run.settings.method)
    options = build(module.Options, run.resolved["options"])
    measure: MetricsFn = module.predictor(options, run.training_data.data).metrics_fn
    return measure
