"""``kdcache.predict``: what a run says of a source, while it unfolds or as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.runs.online.answer import Prediction, StrPath

if TYPE_CHECKING:
    from kdcache.runs.train import Run


def predict(
    run: Run | StrPath,
    source: StrPath,
    *,
    skeleton: StrPath | None = None,
    start: float | None = None,
    stop: float | None = None,
    which: str = "last",
    weights: StrPath | Mapping[str, StrPath] | None = None,
    fps: float | None = None,
    device: str | None = None,
) -> Iterator[Prediction]:
    """Class probabilities of a clip of a source, whether or not the run's cache holds it.

    They are those of ``Run.predict`` on the same clip in the cache, up to the rounding of the arithmetic. A run of
    ``early`` answers at each observation level, before anything that follows its part is decoded; the length of the
    clip is taken from the file: observation ratios are shares of it. A run of any other method answers once. Only what
    its network reads is computed from the source, as extraction would: privileged inputs are not.

    Args:
        run: a finished run or its folder; its cache must be there.
        source: video, folder or tar of images, or skeleton file: what the run's clips were cut from.
        skeleton: skeleton file of the same clip, for a run on videos and skeletons together.
        start, stop: the clip's span in seconds of the source, half-open; default: all of it.
        which: ``last`` or ``best`` weights of the run.
        weights: backbone → file or ``random:SEED``, or one for all; default: found by the digest in the run's recipes.
        fps: frame rate of a folder or tar of images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; default: as the run's settings say.

    Raises:
        OptionError: a run that has not finished, one of early recognition's teacher, or one on imported streams.
        WeightsError: the backbone's weights are not here, or are others.
        SourceError, ClipError: while iterating, a source that cannot be read or has no such span.
    """
    from kdcache.runs.online.loading import load
    from kdcache.runs.run import Run

    opened = run if isinstance(run, Run) else Run(Path(run))
    if device is not None:
        opened = opened.on(device)
    return load(opened, which, weights).answers(Path(source), (skeleton, start, stop, fps))
