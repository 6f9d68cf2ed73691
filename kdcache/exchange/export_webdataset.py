"""Export streams of a cache to tar files as the WebDataset library reads them.

A sample is a run of files of a tar that agree up to the first dot of their base names
(https://github.com/webdataset/webdataset, ``base_plus_ext``): the key. What follows that dot names the field, in lower
case. Clip ``bend/daria`` with stream ``i3d-rgb/mixed4a`` becomes

    bend/daria.i3d-rgb.mixed4a.npy    the array as it is cached, [V, …], or […] of one view
    bend/daria.json                   {"clip": {manifest row}, "frames": {"i3d-rgb/mixed4a": [source frames]}}

Keys hold no dots: in clip ids ``% . \\ :`` are written as %25, %2E, %5C, %3A. The headers hold no times and
no owners, so equal caches give equal tars.
"""

from __future__ import annotations

import contextlib
import filecmp
import io
import json
import math
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.exchange.exporting import Export, ExportReport
from kdcache.exchange.npy_files import npy_bytes
from kdcache.files import sync, temporary_name, writing
from kdcache.store.layout import StrPath

SHARD_MB = 1000.0

_UNSAFE = re.compile(r"[%.\\:]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def sample_key(clip_id: str) -> str:
    """The key of a clip: its id without dots, and with ``/`` where that makes folders."""
    key = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", clip_id)
    key = f"%5F{key[1:]}" if key.startswith("__") else key  # the library passes over __files__
    return key if all(key.split("/")) else key.replace("/", "%2F")


def field_name(stream: str) -> str:
    """The field of a stream: ``i3d-rgb/mixed4a`` is ``i3d-rgb.mixed4a.npy``."""
    return f"{stream.replace('/', '.').lower()}.npy"


def export_webdataset(
    shards: StrPath,
    out: StrPath,
    *,
    streams: list[str],
    name: str = "clips",
    by: str | None = None,
    view: int | None = None,
    shard_size: float = SHARD_MB,
    shuffle: int | None = None,
    progress: bool = True,
) -> ExportReport:
    """Export streams to ``OUT/NAME-000000.tar``, ``NAME-000001.tar`` …, and ``OUT/manifest.csv``.

    A second call compares what it would write with what is there, and replaces only shards that differ.

    Args:
        shards: the cache.
        out: a new or empty folder, or one with part of the same export.
        streams: any; clips that have them all are exported. RGB frames come out as uint8 [T, H, W, 3].
        name: of the shards: letters, digits, ``_`` and ``-``.
        by: manifest column whose value is put behind the name, such as ``split``: ``clips-train-000000.tar``. Clips
            with an empty cell go to ``clips-none-…``.
        view: only this view, without the axis of views; default: all, V first.
        shard_size: a shard closes before it grows beyond so many MB (10⁶ bytes); a larger clip gets one of its own.
        shuffle: seed of a random order of the clips; default: the manifest's, in which classes often follow each other.
        progress: show a bar, when standard error is a terminal.

    Raises:
        OptionError: unknown stream, view or column, names that cannot be used, a folder that holds other files.
        StoreError: a damaged cache, or one that mixes recipes.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(f"--name {name!r}: write letters, digits, _ and -.")
    if not (math.isfinite(shard_size) and shard_size > 0):
        raise OptionError(f"--shard-size {shard_size}: give a positive number of MB.")
    if len({field_name(stream) for stream in set(streams)}) < len(set(streams)):
        raise OptionError(f"Streams {', '.join(streams)}: two become one field; export them to folders of their own.")
    export = Export.open(shards, streams, out)
    if view is not None:
        export.check_view(view)
    rows = export.rows
    if shuffle is not None:
        rows = rows.iloc[np.random.default_rng(shuffle).permutation(len(rows))]
    series = _series(rows, name, by)
    order = np.argsort(series, kind="stable")  # one series of shards after the other
    series, rows = series[order], rows.iloc[order].reset_index(drop=True)
    export = replace(export, rows=rows)
    recipes = {stream: export.cache.recipe(stream) for stream in streams}
    export.claim(to="webdataset", recipes=recipes, name=name, by=by, view=view, shard_size=shard_size, shuffle=shuffle)
    frames = {stream: export.frames(stream) for stream in streams}
    with TarShards(export.folder, 1e6 * shard_size) as shards_out:
        for (row, arrays), to in zip(export.arrays(view, progress), series.tolist(), strict=True):
            key = sample_key(row["clip_id"])
            files = [(f"{key}.{field_name(s)}", npy_bytes(arrays[s])) for s in streams]
            used = {s: frames[s][row["clip_id"]].tolist() for s in streams}
            facts = json.dumps({"clip": row, "frames": used}, ensure_ascii=False, allow_nan=False)
            shards_out.add(to, [*files, (f"{key}.json", facts.encode())])
    report = ExportReport(export.folder, len(rows), shards_out.written, shards_out.there, "shards")
    if removed := _remove_others(export.folder, name, shards_out.names):
        report.notes.append(f"{removed} shards of an earlier call, which this one does not need, were removed")
    return export.finish(report)


def _series(rows: pd.DataFrame, name: str, by: str | None) -> NDArray[np.str_]:
    """The series of shards that each clip goes to, such as ``clips-train``."""
    if by is None:
        return np.full(len(rows), name)
    if by not in rows:
        raise OptionError(f"--by {by}: the manifest has no such column; it has {', '.join(rows.columns)}.")
    cells = ["" if pd.isna(cell) else str(cell) for cell in rows[by].tolist()]
    return np.array([f"{name}-{quote(cell, safe='') or 'none'}" for cell in cells])


def _remove_others(folder: Path, name: str, kept: set[str]) -> int:
    """Remove shards of the same name that are not kept: who reads ``NAME-*.tar`` would read their clips twice."""
    shard = re.compile(rf"{re.escape(name)}(-.+)?-[0-9]{{6}}\.tar")
    others = [path for path in folder.iterdir() if shard.fullmatch(path.name) and path.name not in kept]
    for path in others:
        path.unlink()
    return len(others)


class TarShards:
    """Tars ``SERIES-%06d.tar`` of a folder, each written under a temporary name; used in ``with``."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.names: set[str] = set()
        self.written = self.there = 0
        self._series, self._number, self._nbytes = "", 0, 0
        self._temporary: Path | None = None
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            if self._tar is not None and self._temporary is not None:
                with contextlib.suppress(OSError):  # for the end of the archive a full disk has no room either
                    self._tar.close()
                self._temporary.unlink(missing_ok=True)

    def add(self, series: str, files: list[tuple[str, bytes]]) -> None:
        """Add the files of one sample; the samples of a series come one after the other."""
        nbytes = sum(512 + -(-len(data) // 512) * 512 for _, data in files)
        if series != self._series or self._nbytes + nbytes > self.limit:
            self._close()
            self._number = self._number + 1 if series == self._series else 0
            self._series, self._nbytes = series, 0
        self._nbytes += nbytes
        with writing(self.folder / self._name):
            if self._tar is None:
                self._temporary = self.folder / temporary_name(self._name)
                self._tar = tarfile.open(self._temporary, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  (_close does)
            for name, data in files:
                header = tarfile.TarInfo(name)  # no time, no owner: the same bytes every time
                header.size, header.mode = len(data), 0o444
                self._tar.addfile(header, io.BytesIO(data))

    @property
    def _name(self) -> str:
        return f"{self._series}-{self._number:06d}.tar"

    def _close(self) -> None:
        """Give the shard being written its name, unless the same bytes are there."""
        if self._tar is None or self._temporary is None:
            return
        final = self.folder / self._name
        with writing(final):
            self._tar.close()
            if final.exists() and filecmp.cmp(self._temporary, final, shallow=False):
                self._temporary.unlink()
                self.there += 1
            else:
                sync(self._temporary)
                os.replace(self._temporary, final)
                sync(self.folder)
                self.written += 1
        self.names.add(final.name)
        self._tar = self._temporary = None
