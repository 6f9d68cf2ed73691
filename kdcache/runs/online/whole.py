"""The answer of a run that sees whole clips, for a clip of any source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.data.inputs import bind
from kdcache.data.ondemand.clips import Clip
from kdcache.data.ondemand.open import open_one
from kdcache.data.open import StreamPool, open_streams
from kdcache.data.training_data import TrainingData
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.manifest import read_manifest
from kdcache.methods.contract import SkeletonSegment
from kdcache.runs.online.answer import Prediction, class_names
from kdcache.runs.online.clip import CLIP, SourceClip, skeleton_end, spans_of, video_end
from kdcache.runs.online.recipes import restore_all, stream_setting
from kdcache.runs.run import Run
from kdcache.skeletons import open_skeleton
from kdcache.sources import open_source
from kdcache.store.failures import load_failures

if TYPE_CHECKING:
    from kdcache.runs.online.prediction import Span


def whole(run: Run, source: Path, span: Span, which: str, weights: Any) -> Iterator[Prediction]:
    """One answer, from what the inputs that the network reads need of the source.

    Streams of a cache are restored from the recipes that the run kept, those of privileged inputs excepted.

    Raises:
        OptionError, WeightsError, SourceError, ClipError: see ``kdcache.predict``.
    """
    if run.settings.shards is None:
        return _of_sources(run, source, span, which, weights)
    streams = restore_all(run, weights)
    data = run.training_data.data
    clip = SourceClip(streams, spans_of(streams, source, *span), str(data.device))
    pool = StreamPool()
    pool.open(0)  # nothing is kept in memory: each array is read once
    bindings = bind(clip, run.inputs, stream_setting(run))
    inputs = open_streams(clip, bindings, [CLIP], data.seed, data.device, pool)
    alone = _alone(run, replace(run.training_data, data=replace(data, inputs=inputs)))
    alone.network(which)  # refuses a run that has not finished before anything is decoded
    return _of_streams(alone, clip, which)


def _of_streams(run: Run, clip: SourceClip, which: str) -> Iterator[Prediction]:
    with clip:
        yield _answer(run, which, clip.end_s)


def _of_sources(run: Run, source: Path, span: Span, which: str, weights: Any) -> Iterator[Prediction]:
    """The answer of a run on the sources of a manifest, which are not opened for it."""
    skeleton, start, stop, fps = span
    for name, value in (("skeleton", skeleton), ("weights", weights)):
        if value:
            raise OptionError(f"{name}={value}: {run.path} was trained on sources, not on features; leave it out.")
    first, last = (math.nan if t is None else t for t in (start, stop))
    return _of_source(run, Clip(CLIP, str(source), source, first, last, fps), which)


def _of_source(run: Run, clip: Clip, which: str) -> Iterator[Prediction]:
    settings = run.settings
    opened = open_one(
        read_manifest(str(settings.manifest), settings.root),
        str(settings.root),
        run.inputs,
        clip,
        {failure.clip_id for failure in load_failures(run.path)},
        split_column=settings.split_column,
        validation=settings.validation,
        decoder=settings.decoder,
        device=settings.device,
        precision=settings.precision,
        seed=settings.seed,
    )
    if run.resolved.get("samples") not in (None, opened.resolved["samples"]):
        logger.warning("%s was trained on other examples than its manifest gives now: classes may differ", run.path)
    if isinstance(run.inputs[0].segment, SkeletonSegment):
        end_s = skeleton_end(open_skeleton(clip.path).span(clip.start_s, clip.stop_s))
    else:
        with open_source(clip.path, settings.decoder, clip.fps) as source:
            end_s = video_end(source, clip.start_s, clip.stop_s)
    yield _answer(_alone(run, opened), which, end_s)


def _alone(run: Run, opened: TrainingData) -> Run:
    """The run with one clip, row 0 of its inputs, in place of its own."""
    return Run(run.path, replace(opened, examples=replace(opened.examples, clip_ids=[CLIP])))


def _answer(run: Run, which: str, end_s: float) -> Prediction:
    table = run.predict([CLIP], which)
    classes = tuple(int(c) for c in table.columns)
    probabilities = table.to_numpy(np.float32)[-1]  # of a network that answers level by level, when all was seen
    return Prediction(1, 100, end_s, probabilities, classes, class_names(run, classes))
