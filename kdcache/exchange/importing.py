"""Clips from elsewhere into the shards of a cache: what all importers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ClipError, ManifestError, OptionError
from kdcache.extraction.plan import SHARD_BYTES, json_rows
from kdcache.manifest import read_manifest, validate
from kdcache.progress import counted
from kdcache.recipe import Recipe, clip_key, digest
from kdcache.store import Record, clean, commit_shard, update_index
from kdcache.store.failures import FILE, Failure, update_failures
from kdcache.store.find import CachedPlaces, indexed_places, places_beyond
from kdcache.store.index import refuse_other_classes
from kdcache.store.indexed import Indexed
from kdcache.store.layout import StrPath, row_digest

STAGE = "import"  # in failures.csv

Row = dict[str, Any]
"""A manifest row, missing cells ``None``."""


class Item(NamedTuple):
    """One clip from elsewhere."""

    array: NDArray[Any]
    """[V, …], every clip of a stream alike; of a ragged stream [T, …]."""
    frames: NDArray[np.int32]
    """Source frame indices from 0, int32 [T]; empty where they are not known."""
    where: str = "its array"
    """What it was read from, for messages."""


@dataclass
class ImportReport:
    """What an import did."""

    out: Path
    """The cache."""
    stream: str
    clips: int
    """Rows of the manifest."""
    cached: int = 0
    """Clips that the cache held already, from the same numbers."""
    imported: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was assumed, and what of the files no clip asked for; one sentence each."""

    def __str__(self) -> str:
        text = f"{self.clips} clips: {self.cached} cached already, {self.imported} imported"
        text += f", {len(self.failures)} failed (see {self.out / FILE})." if self.failures else "."
        return "\n".join([text, *self.notes])


def manifest_rows(manifest: StrPath | pd.DataFrame, allow_absolute: bool = False) -> pd.DataFrame:
    """A manifest's rows: read from its file, or a table held to the same contract; else ``ManifestError``."""
    if isinstance(manifest, pd.DataFrame):
        return validate(manifest, allow_absolute=allow_absolute)
    return read_manifest(manifest, allow_absolute=allow_absolute)


def import_clips(
    rows: pd.DataFrame, out: Path, recipe: Recipe, read: Callable[[Row], Item], progress: bool = True
) -> ImportReport:
    """Write clips into shards of a cache and index them; what is there already is not written again.

    An array's key is made of the recipe, its own content and the clip's span. So the same call again writes nothing,
    and a clip whose numbers have changed at their origin is imported anew.

    Args:
        rows: the manifest.
        out: the cache; made when absent.
        recipe: of ``kdcache.exchange.recipes``.
        read: manifest row → its array, in any dtype that the recipe's takes; ``ClipError`` lists it as failed.
        progress: show a bar, when standard error is a terminal.

    Raises:
        OptionError: classes numbered by name, to which other clips of the cache give other numbers. Nothing is written.
        StoreError: the disk refuses, or the cache is damaged. What was committed until then is indexed.
    """
    refuse_other_classes(out, rows)
    stream = str(recipe["stream"])
    out.mkdir(parents=True, exist_ok=True)
    clean(out)
    index = Indexed.of(out)
    known, beyond = indexed_places(index, [stream]), places_beyond(out, index, [stream])
    cached = CachedPlaces(known[stream], beyond[stream])
    run = _Import(rows, out, recipe, ImportReport(out, str(recipe["stream"]), len(rows)))
    try:
        for row in counted(stream, json_rows(rows), "clips", shown=progress, leave=True):
            try:
                item = read(row)
                array = _stored(item, recipe)
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
        self.report.failures.append(
            Failure(row["clip_id"], row["source"], STAGE, f"{self.stream}: {error}", "", self.stream)
        )

    def save(self) -> None:
        here = set(self.rows["clip_id"])
        # Failures of other streams, and of the extraction, stay listed.
        update_failures(
            self.out,
            self.report.failures,
            lambda f: f.clip_id in here and f.stage == STAGE and f.reason.startswith(f"{self.stream}: "),
        )
        update_index(self.out, self.rows, {self.stream: self.located})


def _stored(item: Item, recipe: Recipe) -> NDArray[Any]:
    """The array in its stored dtype; NaN, infinity and overflow fail the clip, as in extraction."""
    array, dtype = item.array, np.dtype(recipe["dtype"]).newbyteorder("<")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ClipError(f"{item.where} holds NaN or infinite values; compute its features again.")
        peak = float(np.abs(array).max(initial=0.0))
        if peak > float(np.finfo(dtype).max):
            raise ClipError(f"{item.where} reaches {peak:.3g}, beyond {dtype}; import with --dtype float32.")
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
