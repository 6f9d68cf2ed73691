"""Import RULSTM's LMDB features (one float32 vector a frame) into a cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.exchange.frame_keys import FrameKeys
from kdcache.exchange.importing import ImportReport, Item, Row, import_clips, manifest_rows, parse_frames
from kdcache.exchange.lmdb_vectors import open_vectors
from kdcache.exchange.recipes import imported_recipe
from kdcache.frame_rate import is_rate
from kdcache.sampling import Sampling, sample
from kdcache.store.layout import StrPath

RULSTM_KEY = "{group}_frame_{frame:010d}.jpg"

_SLACK_S = 1e-4  # as in kdcache.sampling: 3.0333 · 30 and 91 are the same moment

Anchor = Literal["first", "centre", "last"]


class Sampler(NamedTuple):
    """Which frames of a clip are taken."""

    frames: Callable[[Row], NDArray[np.int32]]
    """Manifest row → indices from 0, int32 [length]."""
    length: int
    facts: dict[str, Any]
    """What the recipe says of it."""


_MOST_FRAMES = 10**7  # of a source: almost four days at 30 a second


def look_back(stop_s: float, steps: int, step: float, lag: float, fps: float) -> NDArray[np.int32]:
    """RULSTM's sampling: one frame each ``step`` seconds, the last ``lag`` seconds before ``stop_s``.

    Each is the last frame that is over at its moment, floor(t · fps) counted from 1 as RULSTM counts; where a source
    has not begun yet, its first sampled frame stands in (RULSTM/dataset.py, ``__sample_frames_past``). RULSTM itself
    comes out a frame earlier for about one in a hundred, where t · fps is whole and floating point falls below it.

    Returns:
        int32 [steps], frame indices from 0, non-decreasing.

    Raises:
        ClipError: none of the moments lies in the source.
    """
    moments = stop_s - lag - step * np.arange(steps)[::-1]
    _check_last(stop_s * fps, stop_s)
    index = np.floor((moments + _SLACK_S) * fps).astype(np.int64) - 1
    if index[-1] < 0:
        raise ClipError(f"not one frame lies {lag:g} s before its end at {stop_s:g} s; leave the clip out.")
    return np.asarray(np.where(index < 0, index[index >= 0].min(), index), np.int32)


def spread(start_s: float, stop_s: float, rule: Sampling, fps: float) -> NDArray[np.int32]:
    """Frames spread evenly over a clip, as ``kdcache.sampling.sample`` spreads them; int32 [T], indices from 0."""
    low = max(0, math.floor(start_s * fps) - 1)
    _check_last(stop_s * fps, stop_s)
    times = np.arange(low, math.ceil(stop_s * fps) + 2) / fps
    return np.asarray(low + sample(times, start_s, stop_s, rule), np.int32)


def _check_last(frame: float, stop_s: float) -> None:
    if frame > _MOST_FRAMES:
        raise ClipError(f"its end at {stop_s:g} s would be frame {frame:.3g}; correct stop_s or --fps.")


def sampled(
    end: Callable[[Row], float],
    frames: int | None,
    step: float | None,
    lag: float | None,
    anchor: Anchor | None,
    fps: float,
) -> Sampler:
    """The sampler that the options describe; ``end`` gives the time at which a clip ends.

    Raises:
        OptionError: options that are missing or contradict each other.
    """
    if frames is None:
        raise OptionError("Say which frames to take: --frames T, or --at COLUMN of the manifest.")
    if step is not None:
        if not (0 < step < math.inf and 0 <= (lag or 0) < math.inf) or frames < 1:
            raise OptionError(f"--frames {frames} --step {step:g} --lag {lag or 0:g}: give positive numbers.")
        if anchor is not None:
            raise OptionError("--anchor is for frames spread over the clip; leave it or --step out.")
        facts = {"frames": frames, "step": step, "lag": lag or 0.0, "fps": fps}
        return Sampler(lambda row: look_back(end(row), frames, step, lag or 0.0, fps), frames, facts)
    if lag is not None:
        raise OptionError("--lag belongs to --step S; leave it out or add that.")
    rule = Sampling(frames, None, anchor or "centre")
    return Sampler(
        lambda row: spread(row["start_s"] or 0.0, end(row), rule, fps),
        frames,
        {"frames": frames, "anchor": rule.anchor, "fps": fps},
    )


def listed(rows: pd.DataFrame, column: str) -> Sampler:
    """The sampler that takes what a manifest column lists.

    Raises:
        OptionError, ManifestError: no such column, or not lists of as many frame numbers for every clip.
    """
    found = parse_frames(rows, column)
    lengths = Counter(map(len, found.values()))
    if len(lengths) != 1 or not all(lengths):
        raise OptionError(f"--at {column} lists {sorted(lengths)} frames a clip; a stream needs one number, above 0.")
    (count,) = lengths
    return Sampler(lambda row: found[row["clip_id"]], count, {"listed": count})


def import_lmdb(
    path: StrPath,
    manifest: StrPath | pd.DataFrame,
    out: StrPath = "out",
    *,
    stream: str,
    origin: str,
    frames: int | None = None,
    step: float | None = None,
    lag: float | None = None,
    anchor: Anchor | None = None,
    at: str | None = None,
    levels: bool = False,
    fps: float = 30.0,
    first: int = 1,
    key: str = RULSTM_KEY,
    dtype: str = "float32",
    allow_absolute: bool = False,
    progress: bool = True,
) -> ImportReport:
    """Import an LMDB of one float32 vector a frame as a stream of ``[1, T, d]``.

    An environment holds one modality: ``rgb`` and ``flow`` 1024 numbers a frame, ``obj`` 352, under keys such as
    ``P01_01_frame_0000000001.jpg``, numbered from 1 at 30 frames a second (https://github.com/fpv-iplab/rulstm). Import
    each into a stream of its own; training joins them with ``stream=rulstm/rgb,rulstm/flow``.

    Args:
        path: a folder with ``data.mdb``, or a single file.
        manifest: the clips, a CSV file or a table. A clip without ``stop_s`` ends with the last frame of its source.
        out: the cache; made when absent.
        stream: name, such as ``rulstm/rgb``.
        origin: what computed the features; kept in the recipe.
        frames: vectors of each clip, ``T``.
        step: seconds between them, looking back from ``stop_s``, as RULSTM samples; default: spread over the clip.
        lag: with ``step``, seconds from the last frame to ``stop_s``.
        anchor: without ``step``, frame of each of ``T`` equal parts; default ``centre``.
        at: manifest column that lists the frames of each clip, as ``12 13 13``, counted from 0, instead.
        levels: the frames stand for observation levels (``VND``); default time steps (``VTD``).
        fps: frame rate of the numbering.
        first: number of a source's first frame.
        key: key of a frame: manifest columns in braces, and ``{frame}``.
        dtype: ``float32`` or ``float16``.
        allow_absolute: sources may be absolute paths; an import opens none of them.
        progress: show a bar, when standard error is a terminal.

    Raises:
        OptionError: options that are missing or contradict each other; the package ``lmdb`` is not installed.
        ManifestError: a manifest that breaks the contract.
        SourceError: not an LMDB of vectors of one length.
        StoreError: the disk refuses, or the cache is damaged.
    """
    if dtype not in ("float16", "float32"):
        raise OptionError(f"--dtype {dtype}: choose float16 or float32.")
    if not is_rate(fps):
        raise OptionError(f"--fps {fps}: give frames a second, like 25 or 29.97.")
    rows = manifest_rows(manifest, allow_absolute)
    keys = FrameKeys(key, [c for c in rows.columns if c != at], first)
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; name the folder with data.mdb.")
    with open_vectors(path) as vectors:

        def end(row: Row) -> float:
            if row["stop_s"] is not None:
                return float(row["stop_s"])
            return (vectors.last(*keys.affixes(row)) - first + 1) / fps

        if levels and step is not None:
            raise OptionError("--levels are shares of a clip and --step looks back from its end; leave one out.")
        if at is not None:
            if frames or step or lag is not None or anchor:
                raise OptionError(f"--at {at} lists the frames: leave out --frames, --step, --lag and --anchor.")
            sampler = listed(rows, at)
            rows = rows.drop(columns=at)
        else:
            sampler = sampled(end, frames, step, lag, anchor, fps)

        def read(row: Row) -> Item:
            index = sampler.frames(row)
            found = vectors.read([keys.of(row, i) for i in index.tolist()])
            return Item(found[None], index, f"its vectors in {path}")

        shape = 1, sampler.length, vectors.size
        recipe = imported_recipe(stream, shape, dtype, "lmdb", origin, levels=levels, sampling=sampler.facts)
        return import_clips(rows, Path(out), recipe, read, progress)
