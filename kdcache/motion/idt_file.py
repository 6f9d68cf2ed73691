"""``kdcache idt``: improved dense trajectories of a video as the text that the original program prints."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from kdcache.errors import ClipError, OptionError
from kdcache.files import atomic
from kdcache.motion.descriptors import COLUMNS, SIZE
from kdcache.motion.idt import tabulate, to_columns
from kdcache.motion.tracker import IDTParams, Tracker
from kdcache.progress import progress as progress_of
from kdcache.sampling import clip_range
from kdcache.sources import open_source

StrPath = str | os.PathLike[str]

STDOUT = "-"


def write_trajectories(
    source: StrPath,
    output: StrPath = STDOUT,
    descriptors: bool = True,
    start_s: float | None = None,
    stop_s: float | None = None,
    *,
    fps: float | None = None,
    params: IDTParams | None = None,
    progress: bool = True,
) -> int:
    """Track a source and write its trajectories, one a line, in the format and order of the original program.

    A line holds 436 numbers (:func:`kdcache.motion.idt.to_columns`), each followed by a tab as in the original: the
    last frame of the track, counted from the source's first, as an integer, descriptors with seven decimals, all else
    with six. Frames are read and tracked one by one, so that memory does not grow with the video.

    Args:
        source: a video, a folder or a tar of frames.
        output: file to write, gzipped when its name ends in ``.gz``; ``-`` is standard output.
        descriptors: ``False`` leaves out HOG, HOF and MBH: 40 numbers a line.
        start_s, stop_s: the span to track, in seconds; ``None`` is the source's start or end. Position in time is
            relative to it.
        fps: frame rate of a folder or tar of frames.
        params: settings of the trajectories.
        progress: show frames/s and the time left.

    Returns:
        The number of trajectories.

    Raises:
        SourceError: the source cannot be read; a file named by ``output`` is then as it was.
        ClipError: the span lies outside the source, or its frames are too small for descriptors.
        OptionError: a span that ends before it starts.
    """
    if start_s is not None and stop_s is not None and not start_s < stop_s:
        raise OptionError(f"The span from {start_s:g} s to {stop_s:g} s is empty; let it stop after it starts.")
    start, stop = (math.nan if s is None else s for s in (start_s, stop_s))
    written = 0
    with open_source(source, fps=fps) as frames:
        try:
            first, last = clip_range(frames.times, start, stop)
            tracker = Tracker(frames.info.height, frames.info.width, params, descriptors)
        except ClipError as error:
            raise ClipError(f"{os.fspath(source)}: {error}") from error
        clip = (last - first, *tracker.shape)
        line = "%d\t" + "%f\t" * (COLUMNS - SIZE - 1) + "%.7f\t" * (SIZE if descriptors else 0) + "\n"
        images = frames.read(range(first, last))
        with _opened(output) as file, progress_of("idt", clip[0], "frames", shown=progress) as bar:
            for image in images:
                bar.update()
                finished = tracker.push(image)
                if not finished:
                    continue
                table = to_columns(tabulate(finished, clip, tracker.params.length, descriptors), descriptors)
                table[:, 0] += np.float32(first)
                file.writelines(line % tuple(row) for row in table.tolist())
                written += len(table)
    return written


@contextlib.contextmanager
def _opened(output: StrPath) -> Iterator[TextIO]:
    """Standard output, or a file that appears only when all is written; the same text gives the same bytes."""
    if os.fspath(output) == STDOUT:
        yield sys.stdout
        sys.stdout.flush()
        return
    with atomic(output) as temporary, contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(temporary, "wb"))
        packed = None
        if Path(output).suffix == ".gz":
            packed = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(packed or raw, encoding="ascii", newline="\n"))
