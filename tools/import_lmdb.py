"""Import RULSTM's LMDB features (one float32 vector a frame) into a cache.

    python tools/import_lmdb.py ek55/rgb --manifest clips.csv --out out --stream rulstm/rgb \\
        --origin "RULSTM EK55 RGB" --frames 14 --step 0.25

An environment holds one modality: ``rgb`` and ``flow`` 1024 numbers a frame, ``obj`` 352, under keys such as
``P01_01_frame_0000000001.jpg``, numbered from 1 at 30 frames a second (https://github.com/fpv-iplab/rulstm). Import
each into a stream of its own; training joins them with ``stream=rulstm/rgb,rulstm/flow``. A clip becomes ``[1, T, d]``:
T time steps, or with ``--levels`` T observation levels, of which each is a frame that was seen by then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import lmdb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exchange import Item, Row, import_clips, imported_recipe, parse_frames
from frame_keys import FrameKeys
from kdcache.cli.common import sentences
from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.manifest import read_manifest
from kdcache.sampling import Sampling, sample

_SLACK_S = 1e-4  # as in kdcache.sampling: 3.0333 · 30 and 91 are the same moment


class Sampler(NamedTuple):
    """Which frames of a clip are taken."""

    frames: Callable[[Row], NDArray[np.int32]]
    """Manifest row → indices from 0, int32 [length]."""
    length: int
    facts: dict[str, Any]
    """What the recipe says of it."""


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
    index = np.floor((moments + _SLACK_S) * fps).astype(np.int64) - 1
    if index[-1] < 0:
        raise ClipError(f"not one frame lies {lag:g} s before its end at {stop_s:g} s; leave the clip out.")
    return np.asarray(np.where(index < 0, index[index >= 0].min(), index), np.int32)


def spread(start_s: float, stop_s: float, rule: Sampling, fps: float) -> NDArray[np.int32]:
    """Frames spread evenly over a clip, as ``kdcache.sampling.sample`` spreads them; int32 [T], indices from 0."""
    low = max(0, math.floor(start_s * fps) - 1)
    times = np.arange(low, math.ceil(stop_s * fps) + 2) / fps
    return np.asarray(low + sample(times, start_s, stop_s, rule), np.int32)


def sampled(
    end: Callable[[Row], float],
    frames: int | None,
    step: float | None,
    lag: float | None,
    anchor: Literal["first", "centre", "last"] | None,
    fps: float,
) -> Sampler:
    """The sampler that the options describe; ``end`` gives the time at which a clip ends.

    Raises:
        OptionError: options that are missing or contradict each other.
    """
    if frames is None:
        raise OptionError("Say which frames to take: --frames T, or --at COLUMN of the manifest.")
    if step is not None:
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


class Vectors:
    """The vectors of one open environment."""

    def __init__(self, path: Path, transaction: Any) -> None:
        self.path, self._transaction = path, transaction
        cursor = transaction.cursor()
        if not cursor.first():
            raise SourceError(f"{path}: the LMDB is empty; name another.")
        self._example = bytes(cursor.key())
        self.size, rest = divmod(len(cursor.value()), 4)
        if rest or not self.size:
            raise SourceError(f"{path}: {_shown(self._example)} is not a float32 vector; name an LMDB of features.")

    def read(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """The vectors of some frames, float32 [T, d].

        Raises:
            ClipError: keys that are not there; says how many, and the first.
            SourceError: a value of another length.
        """
        found = {key: self._transaction.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, value in found.items() if value is None]
        if missing:
            raise ClipError(
                f"{len(missing)} of its {len(found)} frames are not in {self.path} (first {_shown(missing[0])}; "
                f"keys there look like {_shown(self._example)}); check --key, --fps and --first, or leave the clip out."
            )
        for key, value in found.items():
            if len(value) != 4 * self.size:
                raise SourceError(
                    f"{self.path}: {_shown(key)} holds {len(value)} bytes, {_shown(self._example)} {4 * self.size}; "
                    "all frames of a stream need vectors of one length: mend the LMDB."
                )
        return np.stack([np.frombuffer(found[key], "<f4") for key in keys])

    def last(self, before: bytes, after: bytes) -> int:
        """The highest frame number of a source among keys ``before`` + number + ``after``.

        Raises:
            ClipError: there is none.
        """
        highest = -1
        cursor = self._transaction.cursor()
        if cursor.set_range(before):
            for key in cursor.iternext(keys=True, values=False):
                if not key.startswith(before):
                    break
                middle = key[len(before) : len(key) - len(after)]
                if key.endswith(after) and middle.isdigit():
                    highest = max(highest, int(middle))
        if highest < 0:
            raise ClipError(f"no key in {self.path} begins with {_shown(before)}; check --key, or leave the clip out.")
        return highest


@contextmanager
def open_vectors(path: Path) -> Iterator[Vectors]:
    """Open an LMDB (a folder with ``data.mdb``, or a single file) for reading; nothing in it is changed."""
    try:
        with lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, create=False, readahead=False
        ) as environment:
            with environment.begin() as transaction:
                yield Vectors(path, transaction)
    except lmdb.Error as error:
        raise SourceError(f"{path}: cannot be read as an LMDB ({error}); name the folder with data.mdb.") from error


def _shown(key: bytes) -> str:
    return repr(key.decode(errors="replace"))


@click.command()
@click.argument("source", metavar="LMDB", type=click.Path(exists=True, path_type=Path))
@click.option("--manifest", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default="out", show_default=True, type=click.Path(path_type=Path), help="The cache.")
@click.option("--stream", required=True, help="Name of the stream, such as rulstm/rgb.")
@click.option(
    "--origin", required=True, help='What computed the features, such as "RULSTM EK55 RGB"; kept in the recipe.'
)
@click.option("--frames", type=click.IntRange(1), help="Frames of each clip, T.")
@click.option("--step", type=click.FloatRange(0, min_open=True), help="Seconds between them, looking back from stop_s.")
@click.option(
    "--lag", type=click.FloatRange(0), help="With --step: seconds from the last frame to stop_s.  [default: 0]"
)
@click.option(
    "--anchor",
    type=click.Choice(["first", "centre", "last"]),
    help="Without --step: frame of each part.  [default: centre]",
)
@click.option("--at", metavar="COLUMN", help="Take the frames that this column lists (export_lmdb.py: frames) instead.")
@click.option("--levels", is_flag=True, help="The frames stand for observation levels (early recognition).")
@click.option(
    "--fps", default=30.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of the numbering."
)
@click.option("--first", default=1, show_default=True, type=click.IntRange(0), help="Number of a source's first frame.")
@click.option("--key", default="{group}_frame_{frame:010d}.jpg", show_default=True, help="Manifest columns in braces.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float16"]))
def main(
    source: Path,
    manifest: Path,
    out: Path,
    stream: str,
    origin: str,
    frames: int | None,
    step: float | None,
    lag: float | None,
    anchor: Literal["first", "centre", "last"] | None,
    at: str | None,
    levels: bool,
    fps: float,
    first: int,
    key: str,
    dtype: str,
) -> None:
    """Import an LMDB of one vector a frame: each clip becomes [1, T, d].

    --frames T spreads the frames over the clip; --frames T --step S takes one each S seconds back from its end, as
    RULSTM does (--frames 14 --step 0.25, and --lag 0.25 where clips end when the action starts); --at COLUMN takes the
    ones listed. A clip of which a frame is missing is listed in failures.csv; exit status 3 then.
    """
    with sentences():
        rows = read_manifest(manifest)
        keys = FrameKeys(key, [c for c in rows.columns if c != at], first)
        with open_vectors(source) as vectors:

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
                return Item(vectors.read([keys.of(row, i) for i in index.tolist()])[None], index)

            shape = 1, sampler.length, vectors.size
            recipe = imported_recipe(stream, shape, dtype, "lmdb", origin, levels=levels, sampling=sampler.facts)
            report = import_clips(rows, out, recipe, read)
    report.finish()


if __name__ == "__main__":
    main()
