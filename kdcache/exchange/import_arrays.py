"""Import a collection of arrays, one a clip, or one a source that is cut by the clips' spans."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from kdcache.errors import ClipError
from kdcache.exchange.arrays import ArrayFiles, ArrayOptions, Where
from kdcache.exchange.importing import ImportReport, Item, Row, import_clips, parse_frames
from kdcache.exchange.recipes import check_name
from kdcache.exchange.survey import Survey
from kdcache.extraction.plan import json_rows
from kdcache.sampling import OVERRUN_S

_SLACK_S = 1e-4  # as in kdcache.sampling: 3.0333 · 30 and 91 are the same moment


def import_arrays(
    files: ArrayFiles[Where],
    rows: pd.DataFrame,
    out: Path,
    stream: str,
    origin: str,
    options: ArrayOptions,
    progress: bool = True,
) -> ImportReport:
    """Import what ``files`` have of the clips of a manifest.

    Raises:
        OptionError: options that do not fit the arrays.
        SourceError: no clip has an array, two arrays differ in dtype or in more than their length, or two names lead
            to one array. Nothing is written then.
        StoreError: as ``import_clips``.
    """
    check_name(stream)
    frames = parse_frames(rows, options.at) if options.at is not None else {}
    rows = rows.drop(columns=[] if options.at is None else options.at)
    survey = Survey.of(files, json_rows(rows), options, progress)
    recipe, note = survey.recipe(stream, origin, options)
    none = np.empty(0, np.int32)

    def read(row: Row) -> Item:
        where = survey.where(row)
        shown, shape = files.shown(where), survey.headers[where].shape
        if 0 in shape:
            raise ClipError(f"{shown} is empty; compute its features again, or leave the clip out.")
        if options.per == "source":
            assert options.fps is not None
            low, high = cut(row["start_s"], row["stop_s"], shape[0], options.fps, options.offset)
            return Item(files.read(where, slice(low, high)), np.arange(low, high, dtype=np.int32), shown)
        array = files.read(where)
        fixed = recipe["layout"] == "fixed"
        return Item(array[None] if fixed and not options.views else array, frames.get(row["clip_id"], none), shown)

    notes = [*note, *survey.unused()]
    report = import_clips(rows, out, recipe, read, progress)
    report.notes += notes
    return report


def cut(start_s: float | None, stop_s: float | None, rows: int, fps: float, offset: float = 0.0) -> tuple[int, int]:
    """The rows of a clip in the array of its source: half-open ``(low, high)``, never empty.

    Row ``i`` stands for the time ``offset + i / fps``. A clip has the rows with ``start_s <= time < stop_s``, as
    extraction takes frames; one that lies between two rows has the row before it. An array may end up to
    0.5 s or one row before the clip does, whichever is longer, for windows that run beyond a source's end are often
    left out; the clip is then so much shorter.

    Args:
        start_s, stop_s: seconds, half-open; ``None`` for the source's start or end.
        rows: of the array.
        fps: rows a second.
        offset: time of the first row, s.

    Raises:
        ClipError: the clip begins after the array's end, ends more than that after it, or ends before the first row.
    """
    end = offset + rows / fps
    if start_s is not None and start_s > end - _SLACK_S:
        raise ClipError(f"it starts at {start_s:g} s but its source's array ends at {end:.3f} s; correct --fps or it.")
    if stop_s is not None and stop_s > end + max(OVERRUN_S, 1 / fps):
        raise ClipError(f"it stops at {stop_s:g} s but its source's array ends at {end:.3f} s; correct --fps or it.")
    low = 0 if start_s is None else max(0, math.ceil((start_s - offset - _SLACK_S) * fps))
    high = rows if stop_s is None else min(rows, math.ceil((stop_s - offset - _SLACK_S) * fps))
    if high <= 0:
        raise ClipError(
            f"it stops at {stop_s:g} s but its source's array begins at {offset:g} s; correct --offset or leave it out."
        )
    if high <= low:
        low = max(0, min(low, rows) - 1)
        high = low + 1
    return low, high
