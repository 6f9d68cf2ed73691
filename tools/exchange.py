"""What the importers and exporters share: clips into the shards of a cache, and folders that exports are written to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from kdcache.cli.common import SOME_FAILED
from kdcache.errors import ClipError, ManifestError, OptionError
from kdcache.extraction.plan import SHARD_BYTES, json_rows
from kdcache.files import atomic
from kdcache.manifest import write_manifest
from kdcache.recipe import Recipe, clip_key, differences, digest
from kdcache.store import Cache, Record, clean, commit_shard, scan, update_index
from kdcache.store.failures import FILE, Failure, load_failures, save_failures
from kdcache.store.layout import row_digest
from kdcache.store.validate import check_streams
from kdcache.streams.axes import axes_of, check_axes
from kdcache.streams.registry import KINDS
from kdcache.streams.video import DenseStream

STAGE = "import"  # in failures.csv
FRAMES = "frames"  # column of an export's manifest: the source frames of each clip, as 12 13 13
_MARKER = "export.json"
_READ = 16  # clips read from the cache at once

Row = dict[str, Any]


class Item(NamedTuple):
    """One clip from elsewhere."""

    array: NDArray[Any]
    """[V, …], every clip of a stream alike."""
    frames: NDArray[np.int32]
    """Source frame indices from 0, int32 [T]; empty where they are not known."""


@dataclass
class ImportReport:
    """What an import did."""

    out: Path
    clips: int
    cached: int = 0
    """Clips that the cache held already, from the same numbers."""
    imported: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.clips} clips: {self.cached} cached already, {self.imported} imported"
        return text + (f", {len(self.failures)} failed (see {self.out / FILE})." if self.failures else ".")

    def finish(self) -> None:
        """Print it, and exit with status 3 if clips failed, as ``kdcache extract`` does."""
        click.echo(self)
        if self.failures:
            raise SystemExit(SOME_FAILED)


def imported_recipe(
    stream: str,
    shape: Sequence[int],
    dtype: str,
    source: str,
    origin: str,
    axes: str | None = None,
    levels: bool = False,
    **how: Any,
) -> Recipe:
    """The recipe of an imported stream: what the arrays are, the kind of files they come from, who computed them.

    Args:
        stream: name.
        shape: of each clip, views first.
        dtype: stored.
        source: kind of files, such as ``npy``.
        origin: what computed the features.
        axes: of ``shape``, see ``kdcache.streams.axes``. Default: ``VD`` or ``VTD`` for vectors, not known for maps.
        levels: vectors stand for observation levels: ``VND``.
        how: further facts that make one import differ from another.

    Raises:
        OptionError: the name is that of a stream whose arrays kdcache draws and decodes itself, or axes that do not
            fit the shape.
        StoreError: the name has odd characters.
    """
    check_streams([stream])
    if any(kind.accepts(stream) for kind in KINDS if issubclass(kind, DenseStream)):
        raise OptionError(
            f"--stream {stream}: kept for what kdcache extracts itself; write for example rulstm/{stream}."
        )
    if levels and axes is not None:
        raise OptionError(f"--levels and --axes {axes}: leave --levels out and write N for the axis of levels.")
    if levels and len(shape) != 3:
        raise OptionError(f"--levels: a clip is {list(shape)}, not [views, levels, d]; name the axes with --axes.")
    recipe = {
        "stream": stream,
        "version": 1,
        "layout": "fixed",
        "dtype": dtype,
        "shape": [int(n) for n in shape],
        "imported": {"from": source, "origin": origin, **how},
    }
    stated = "VND" if levels else axes and check_axes(axes, len(shape))
    if stated and stated != axes_of(recipe):  # else the same import as without the option: the same digest
        recipe["axes"] = stated
    return recipe


def import_clips(
    rows: pd.DataFrame, out: Path, recipe: Recipe, read: Callable[[Row], Item], progress: bool = True
) -> ImportReport:
    """Write clips into shards of a cache and index them; what is there already is not written again.

    An array's key is made of the recipe, its own content and the clip's span. So the same call again writes nothing,
    and a clip whose numbers have changed at their origin is imported anew.

    Args:
        rows: the manifest.
        out: the cache; made when absent.
        recipe: of ``imported_recipe``.
        read: manifest row → its array, in any dtype that the recipe's takes; ``ClipError`` lists it as failed.
        progress: show a bar, when standard error is a terminal.

    Raises:
        StoreError: the disk refuses, or the cache is damaged. What was committed until then is indexed.
    """
    stream = str(recipe["stream"])
    out.mkdir(parents=True, exist_ok=True)
    clean(out)
    cached = scan(out, [stream])[stream]
    run = _Import(rows, out, recipe, ImportReport(out, len(rows)))
    try:
        for row in tqdm(json_rows(rows), unit="clip", desc=stream, disable=None if progress else True):
            try:
                item = read(row)
                array = _stored(item.array, recipe)
            except ClipError as error:
                run.fail(row, error)
                continue
            content = f"{row_digest(item.array)}|{row_digest(item.frames)}"
            key = clip_key(run.digest, content, *(np.nan if row[c] is None else row[c] for c in ("start_s", "stop_s")))
            if key in cached:
                shard, number, found = cached[key]
                run.located[row["clip_id"]] = (shard, number, key, found)
                run.report.cached += 1
                continue
            origin = {"fingerprint": content, "decoder": f"imported from {recipe['imported']['from']}"}
            run.add(Record(row, origin, {stream: key}, {stream: item.frames}, {stream: array}))
        run.commit()
    finally:
        run.save()
    return run.report


class _Import:
    """Clips on their way into shards."""

    def __init__(self, rows: pd.DataFrame, out: Path, recipe: Recipe, report: ImportReport) -> None:
        self.rows, self.out, self.recipe, self.report = rows, out, recipe, report
        self.stream, self.digest = str(recipe["stream"]), digest(recipe)
        self.located: dict[str, tuple[str, int, str, str]] = {}
        self._waiting: list[Record] = []
        self._held = 0

    def add(self, record: Record) -> None:
        array = record.arrays[self.stream]
        assert isinstance(array, np.ndarray)
        self._waiting.append(record)
        self._held += array.nbytes
        if self._held >= SHARD_BYTES:
            self.commit()

    def commit(self) -> None:
        if self._waiting:
            done = commit_shard(self.out, self._waiting, {self.stream: self.recipe})
            self.located |= done.located[self.stream]
            self.report.imported += len(self._waiting)
            self._waiting, self._held = [], 0

    def fail(self, row: Row, error: ClipError) -> None:
        self.report.failures.append(Failure(row["clip_id"], row["source"], STAGE, f"{self.stream}: {error}"))

    def save(self) -> None:
        here = set(self.rows["clip_id"])
        # Failures of other streams, and of the extraction, stay listed.
        kept = [
            f
            for f in load_failures(self.out)
            if not (f.clip_id in here and f.stage == STAGE and f.reason.startswith(f"{self.stream}: "))
        ]
        save_failures(self.out, [*kept, *self.report.failures])
        update_index(self.out, self.rows, {self.stream: self.located})


def _stored(array: NDArray[Any], recipe: Recipe) -> NDArray[Any]:
    """The array in its stored dtype; NaN, infinity and overflow fail the clip, as in extraction."""
    dtype = np.dtype(recipe["dtype"]).newbyteorder("<")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ClipError("holds NaN or infinite values; compute its features again.")
        peak = float(np.abs(array).max(initial=0.0))
        if peak > float(np.finfo(dtype).max):
            raise ClipError(f"reaches {peak:.3g}, beyond {dtype}; import with --dtype float32.")
    return np.ascontiguousarray(array, dtype)


def parse_frames(rows: pd.DataFrame, column: str) -> dict[str, NDArray[np.int32]]:
    """The source frame indices that a manifest column lists for each clip, as ``12 13 13``: clip_id → int32 [T].

    Raises:
        OptionError: there is no such column.
        ManifestError: names every row that is not a list of frame numbers.
    """
    if column not in rows:
        raise OptionError(f"--at {column}: the manifest has no such column; it has {', '.join(rows.columns)}.")
    found: dict[str, NDArray[np.int32]] = {}
    problems = []
    for clip, text in zip(rows["clip_id"], rows[column], strict=True):
        words = str(text).split()
        if all(w.isascii() and w.isdigit() and len(w) < 10 for w in words):
            found[clip] = np.array(words, dtype=np.int32)
        else:
            problems.append(f"clip {clip!r}: {column} {text!r} is not a list of frame numbers such as 12 13 14")
    if problems:
        raise ManifestError("manifest", problems)
    return found


@dataclass(frozen=True)
class Export:
    """A stream of a cache on its way out, and the folder that takes it."""

    cache: Cache
    stream: str
    folder: Path
    rows: pd.DataFrame
    """Manifest rows of the clips that have the stream."""
    frames: dict[str, NDArray[np.int32]]

    @classmethod
    def open(cls, shards: Path, stream: str, folder: Path) -> Export:
        """Open the cache.

        Raises:
            OptionError: unknown stream.
            StoreError: a damaged cache, or one that mixes recipes.
        """
        cache = Cache(shards)
        rows = cache.clips[cache.has(stream)].reset_index(drop=True)
        clips = rows["clip_id"].tolist()
        return cls(cache, stream, folder, rows, dict(zip(clips, cache.frames(stream, clips), strict=True)))

    def check_view(self, view: int) -> None:
        """Refuse a view that the stream has not; ``OptionError``."""
        views = self.cache.shape(self.stream)[0]
        if view >= views:
            raise OptionError(f"--view {view}: stream {self.stream!r} has views 0 to {views - 1}.")

    def claim(self, **facts: Any) -> None:
        """Take the folder: a new or empty one, or one that holds part of this very export.

        Raises:
            OptionError: it holds anything else.
        """
        facts = {"stream": self.stream, "recipe": self.cache.recipe(self.stream), **facts}
        marker = self.folder / _MARKER
        if marker.exists():
            try:
                before = json.loads(marker.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if not isinstance(before, dict):
                raise OptionError(f"{marker}: not what an export leaves; name an empty or new folder.")
            if lines := differences(before, facts):
                raise OptionError(
                    f"{self.folder} holds another export ({'; '.join(lines)}); name an empty or new folder."
                )
            clean(self.folder)
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise OptionError(f"{self.folder} holds other files; name an empty or new folder.")
        with atomic(marker) as temporary:
            temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def arrays(self, view: int | None, progress: bool = True) -> Iterator[tuple[Row, NDArray[Any]]]:
        """Every clip's manifest row and array, [V, …], or […] of one view."""
        rows = json_rows(self.rows)
        with tqdm(total=len(rows), unit="clip", desc=self.stream, disable=None if progress else True) as bar:
            for i in range(0, len(rows), _READ):
                part = rows[i : i + _READ]
                for row, array in zip(
                    part, self.cache.read(self.stream, [r["clip_id"] for r in part], view), strict=True
                ):
                    yield row, array
                    bar.update()

    def finish(self, counts: Counter[str], what: str) -> None:
        """Write the manifest of what was exported and say how much that was."""
        listed = [" ".join(map(str, self.frames[clip].tolist())) for clip in self.rows["clip_id"]]
        write_manifest(self.rows.assign(**{FRAMES: listed}), self.folder / "manifest.csv")
        lacking = len(self.cache.clips) - len(self.rows)
        text = (
            f"{self.folder}: {len(self.rows)} clips; {counts['written']} {what} written, {counts['there']} were there"
        )
        click.echo(text + (f"; {lacking} clips of the cache have no {self.stream}." if lacking else "."))
