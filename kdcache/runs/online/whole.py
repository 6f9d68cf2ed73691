"""The answer of a run that sees whole clips, for a clip that no cache holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.data.inputs import bind
from kdcache.data.open import StreamPool, open_streams
from kdcache.runs.online.answer import Prediction, class_names
from kdcache.runs.online.clip import CLIP, SourceClip, spans_of
from kdcache.runs.online.recipes import restore_all, stream_setting
from kdcache.runs.run import Run

if TYPE_CHECKING:
    from kdcache.methods.contract import InputStream
    from kdcache.runs.online.prediction import Span


def whole(run: Run, source: Path, span: Span, which: str, weights: Any) -> Iterator[Prediction]:
    """One answer, from what the inputs that the network reads need of the source.

    Streams are restored from the recipes that the run kept, those of privileged inputs excepted. Settings and weights
    are checked at once, the source when the answer is asked for.

    Raises:
        OptionError, WeightsError: see ``kdcache.predict``.
    """
    streams = restore_all(run, weights)
    data = run.training_data.data
    clip = SourceClip(streams, spans_of(streams, source, *span), str(data.device))
    pool = StreamPool()
    pool.open(0)  # nothing is kept in memory: each array is read once
    bindings = bind(clip, run.inputs, stream_setting(run))
    alone = _on(run, open_streams(clip, bindings, [CLIP], data.seed, data.device, pool))
    alone.network(which)  # refuses a run that has not finished
    return _answer(alone, clip, which)


def _on(run: Run, inputs: dict[str, InputStream]) -> Run:
    """The run with the one clip in place of its own."""
    opened = run.training_data
    examples = replace(opened.examples, clip_ids=[CLIP])
    return Run(run.path, replace(opened, data=replace(opened.data, inputs=inputs), examples=examples))


def _answer(run: Run, clip: SourceClip, which: str) -> Iterator[Prediction]:
    with clip:
        table = run.predict([CLIP], which)  # of a network that answers at several levels, the last row has seen all
        classes = tuple(int(c) for c in table.columns)
        probabilities = table.to_numpy(np.float32)[-1]
        yield Prediction(1, 100, clip.end_s, probabilities, classes, class_names(run, classes))
