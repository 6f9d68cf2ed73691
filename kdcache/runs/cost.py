"""``kdcache.cost``: what an answer of a run costs, in parameters, multiply-adds, flow fields and seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.errors import OptionError
from kdcache.runs.counts import count
from kdcache.runs.latency import Answering, side_by_side
from kdcache.runs.run import Run


@dataclass(frozen=True)
class Cost:
    """What one answer for one clip takes: of the network that answers, and of the frozen backbone below each cached
    stream that it reads, up to the cached layer. What is read in training only takes no part."""

    inputs: tuple[str, ...]
    """Streams that it is made of."""
    parameters: int
    """That enter the arithmetic, each once, also of a backbone below several streams."""
    multiply_adds: int
    """Of convolutions, matrix products and attention; a multiplication with its addition is 1. All levels of early
    recognition together. The arithmetic of TV-L1 and of trajectories is not in it."""
    flow_fields: int
    """TV-L1 fields, of a clip that is so long that no two of them are the same; shorter clips need fewer."""
    seconds: float | None = None
    """Median time from an opened source to probabilities, with everything loaded: decoding, flow, backbones, network.
    None: not measured."""
    flow_seconds: float | None = None
    """The part of it that TV-L1 takes; 0 where there is no flow."""
    device: str | None = None
    """On which that was measured."""


def cost(
    run: Run | str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    start: float | None = None,
    stop: float | None = None,
    fps: float | None = None,
    device: str | None = None,
    repeats: int = 5,
) -> Cost:
    """What an answer of a run costs; how long it takes where a source is given to answer for.

    Counting neither draws nor loads weights. Time is measured through the code of ``kdcache.predict``, on the run's
    device with as many threads as the process has.

    Args:
        run: a finished run or its folder; its cache (or manifest) must be there.
        source: video, folder or tar of images with its own clock, or skeleton file: what the run's clips were cut from.
        start, stop: the clip's span in seconds of the source, half-open; default: all of it.
        fps: frame rate of a folder or tar of images.
        device: to be timed on; default: the run's.
        repeats: answers that are timed, after one that is not.

    Raises:
        OptionError: a run that has not finished, one on streams of which it is not known how they were computed; with a
            source, a run that ``predict`` does not answer for.
        WeightsError, SourceError, ClipError: with a source, as ``predict``.
    """
    return costs([run], source, start=start, stop=stop, fps=fps, device=device, repeats=repeats)[0]


def costs(
    runs: Sequence[Run | str | os.PathLike[str]],
    source: str | os.PathLike[str] | None = None,
    *,
    start: float | None = None,
    stop: float | None = None,
    fps: float | None = None,
    device: str | None = None,
    repeats: int = 5,
) -> list[Cost]:
    """``cost`` of several runs, which take turns in being timed."""
    if repeats < 1:
        raise OptionError(f"repeats={repeats}: give 1 or more.")
    if source is None and not (start is None and stop is None):
        raise OptionError("start and stop are of a source: give one, or leave them out.")
    opened = [run if isinstance(run, Run) else Run(Path(run)) for run in runs]
    counted = [Cost(**vars(count(run.on("cpu")))) for run in opened]  # whatever device they were trained on
    if source is None:
        return counted
    timed_on = [run.on(device) if device is not None else run for run in opened]
    answering = [Answering(run, Path(source), start, stop, fps) for run in timed_on]
    timed = zip(counted, side_by_side(answering, repeats), answering, strict=True)
    return [replace(known, seconds=took, flow_seconds=flow, device=of.device) for known, (took, flow), of in timed]
