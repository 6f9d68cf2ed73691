"""The answer of a run that sees whole clips, for a clip of any source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.data.inputs import bind
from kdcache.data.open import StreamPool, open_streams
from kdcache.data.training_data import TrainingData
from kdcache.runs.online.answer import Prediction, Span, class_names
from kdcache.runs.online.clip import CLIP, SourceClip, spans_of
from kdcache.runs.online.recipes import restore_all, stream_setting
from kdcache.runs.run import Run
from kdcache.streams.base import ClipSpan


class OneAnswer:
    """A run with one clip, row 0 of its inputs, in place of its own clips; its network is loaded once.

    Raises:
        OptionError: the run has not finished, which is said before anything is decoded.
    """

    def __init__(self, run: Run, opened: TrainingData, which: str) -> None:
        self._run = Run(run.path, replace(opened, examples=replace(opened.examples, clip_ids=[CLIP])))
        self._which = which
        self._run.network(which)
        self._classes = tuple(int(c) for c in opened.data.classes[run.target])
        self._names = class_names(run, self._classes)

    def of(self, end_s: float) -> Prediction:
        """What it says of the clip that its inputs show now, which ends at this second of its source."""
        table = self._run.predict([CLIP], self._which)
        main = self._run.answer_axis(len(table), self._which).main_index if table.index.nlevels > 1 else 0
        probabilities = table.to_numpy(np.float32)[main]  # of a network that answers level by level, when all was seen
        return Prediction(1, 100, end_s, probabilities, self._classes, self._names)


class WholeClips:
    """A run on a cache, loaded; see ``LoadedRun``.

    It computes what the inputs that the network reads need of a source: streams are restored from the recipes that the
    run kept, those of privileged inputs excepted. Backbones are built for the first answer.

    Raises:
        OptionError, WeightsError: see ``kdcache.predict``.
    """

    def __init__(self, run: Run, which: str, weights: Any) -> None:
        self._streams = restore_all(run, weights)
        data = run.training_data.data
        self._clip = SourceClip(self._streams, (), str(data.device))
        pool = StreamPool()
        pool.open(0)  # nothing is kept in memory: each array is read once
        bindings = bind(self._clip, run.inputs, stream_setting(run))
        inputs = open_streams(self._clip, bindings, [CLIP], data.seed, data.device, pool)
        self._answer = OneAnswer(run, replace(run.training_data, data=replace(data, inputs=inputs)), which)

    def answers(self, source: Path, span: Span) -> Iterator[Prediction]:
        """See ``LoadedRun``; one answer."""
        return self._of(spans_of(self._streams, source, *span))

    def _of(self, spans: Sequence[ClipSpan]) -> Iterator[Prediction]:
        with self._clip as clip:
            clip.show(spans)
            yield self._answer.of(clip.end_s)
