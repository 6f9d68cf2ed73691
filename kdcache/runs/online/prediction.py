"""``kdcache.predict``: what a run says of a source, while it unfolds or as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.remote import is_address, without_scheme
from kdcache.runs.online.answer import LoadedRun, Prediction, Span, StrPath
from kdcache.sources import SourceCache, at_hand

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
    source_cache: StrPath | None = None,
    source_cache_gb: float | None = None,
) -> Iterator[Prediction]:
    """Class probabilities of a clip of a source, whether or not the run's cache holds it.

    They are those of ``Run.predict`` on the same clip in the cache, up to the rounding of the arithmetic. A run of
    ``early`` answers at each observation level, before anything that follows its part is decoded; the length of the
    clip is taken from the file: observation ratios are shares of it. A run of any other method answers once. Only what
    its network reads is computed from the source, as extraction would: privileged inputs are not.

    Args:
        run: a finished run or its folder; its cache must be there.
        source: video, folder or tar of images, or skeleton file: what the run's clips were cut from; or its address
            (``s3://…``, ``https://…``), from which it is fetched.
        skeleton: skeleton file of the same clip, for a run on videos and skeletons together.
        start, stop: the clip's span in seconds of the source, half-open; default: all of it.
        which: ``last`` or ``best`` weights of the run.
        weights: backbone → file or ``random:SEED``, or one for all; default: found by the digest in the run's recipes.
        fps: frame rate of a folder or tar of images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; default: as the run's settings say.
        source_cache, source_cache_gb: where a source at an address is fetched to, as in ``extract``.

    Raises:
        OptionError: a run that has not finished, one of early recognition's teacher, or one on imported streams.
        WeightsError: the backbone's weights are not here, or are others.
        SourceError, ClipError, RemoteError: while iterating, a source that cannot be read or has no such span.
    """
    from kdcache.runs.online.loading import load
    from kdcache.runs.run import Run

    opened = run if isinstance(run, Run) else Run(Path(run))
    if device is not None:
        opened = opened.on(device)
    loaded, asked = load(opened, which, weights), (skeleton, start, stop, fps)
    if is_address(text := without_scheme(os.fspath(source))):
        return _fetched(loaded, text, SourceCache.of(source_cache, source_cache_gb), asked)
    return loaded.answers(Path(text), asked)


def _fetched(loaded: LoadedRun, source: str, cache: SourceCache, asked: Span) -> Iterator[Prediction]:
    with at_hand(source, cache) as path:
        yield from loaded.answers(path, asked)
