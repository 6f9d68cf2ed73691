"""The answer of a run that was trained on the sources of a manifest, for a clip of any source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcache.data.ondemand.clips import Clip
from kdcache.data.ondemand.open import OneClip, open_one
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import SkeletonSegment
from kdcache.runs.online.answer import Prediction, Span
from kdcache.runs.online.clip import CLIP, skeleton_end, video_end
from kdcache.runs.online.whole import OneAnswer
from kdcache.runs.prepare import manifest_rows
from kdcache.runs.run import Run
from kdcache.skeletons import open_skeleton
from kdcache.sources import open_source
from kdcache.store.failures import load_failures


class OfSources:
    """A run on the sources of a manifest, loaded without opening them; see ``LoadedRun``.

    Raises:
        OptionError: weights, which such a run has not read; a run that has not finished.
    """

    def __init__(self, run: Run, which: str, weights: Any) -> None:
        self._path, self._settings = run.path, run.settings
        self._refuse("weights", weights)
        self._one = open_for(run)
        if run.resolved.get("samples") not in (None, self._one.opened.resolved["samples"]):
            logger.warning("%s was trained on other examples than its manifest gives now: classes may differ", run.path)
        self._answer = OneAnswer(run, self._one.opened, which)

    def answers(self, source: Path, span: Span) -> Iterator[Prediction]:
        """See ``LoadedRun``; one answer."""
        skeleton, start, stop, fps = span
        self._refuse("skeleton", skeleton)
        first, last = (math.nan if t is None else t for t in (start, stop))
        return self._of(Clip(CLIP, str(source), source, first, last, fps))

    def _refuse(self, name: str, value: Any) -> None:
        if value:
            raise OptionError(f"{name}={value}: {self._path} was trained on sources, not on features; leave it out.")

    def _of(self, clip: Clip) -> Iterator[Prediction]:
        self._one.read(clip)
        if isinstance(self._one.shown, SkeletonSegment):
            end_s = skeleton_end(open_skeleton(clip.path, self._settings.joint_layout).span(clip.start_s, clip.stop_s))
        else:
            with open_source(clip.path, self._settings.decoder, clip.fps) as source:
                end_s = video_end(source, clip.start_s, clip.stop_s)
        yield self._answer.of(end_s)


def open_for(run: Run) -> OneClip:
    """The input of a run on sources, with room for one clip."""
    settings = run.settings
    return open_one(
        manifest_rows(settings),
        settings.roots,
        run.inputs,
        {failure.clip_id for failure in load_failures(run.path)},
        split_column=settings.split_column,
        validation=settings.validation,
        validation_seed=settings.validation_seed,
        validation_as=settings.validation_as,
        decoder=settings.decoder,
        joint_layout=settings.joint_layout,
        device=settings.device,
        precision=settings.precision,
        seed=settings.seed,
    )
