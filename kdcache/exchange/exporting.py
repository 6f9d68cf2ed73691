"""Streams of a cache on their way out, and folders that exports are written to: what all exporters share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.exchange.importing import Row
from kdcache.extraction.plan import json_rows
from kdcache.files import PARTIAL, atomic
from kdcache.manifest import write_manifest
from kdcache.progress import progress as progress_of
from kdcache.recipe import differences
from kdcache.seals import read_json
from kdcache.store import Cache, clean
from kdcache.store.layout import StrPath

FRAMES = "frames"  # column of an export's manifest: the source frames of each clip, as 12 13 13
MANIFEST = "manifest.csv"

_MARKER = "export.json"
_READ = 16  # clips read from the cache at once


@dataclass
class ExportReport:
    """What an export wrote."""

    out: Path
    """The folder."""
    clips: int
    written: int = 0
    there: int = 0
    """What was there already, the same to the bit."""
    what: str = "files"
    """What is counted: files, vectors, shards."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.out}: {self.clips} clips; {self.written} {self.what} written, {self.there} were there"
        return ". ".join([text, *self.notes]) + "."


@dataclass(frozen=True)
class Export:
    """Streams of a cache on their way out, and the folder that takes them."""

    cache: Cache
    streams: list[str]
    folder: Path
    rows: pd.DataFrame
    """Manifest rows of the clips that have all the streams."""

    @classmethod
    def open(cls, shards: StrPath, streams: Sequence[str], folder: StrPath) -> Export:
        """Open the cache.

        Raises:
            OptionError: unknown stream, one that is named twice, or none; no clip that has them all.
            StoreError: a damaged cache, or one that mixes recipes.
        """
        cache = Cache(shards)
        if not streams or len(set(streams)) < len(streams):
            raise OptionError(f"Streams to export: {', '.join(streams) or 'none'}; name each once, one at least.")
        rows = cache.clips[np.logical_and.reduce([cache.has(stream) for stream in streams])].reset_index(drop=True)
        if rows.empty:
            raise OptionError(f"{cache.path}: no clip has all of {', '.join(streams)}; export them one by one.")
        return cls(cache, list(streams), Path(folder), rows)

    def frames(self, stream: str) -> dict[str, NDArray[np.int32]]:
        """clip_id → source frame indices of a stream, int32 [T]."""
        clips = self.rows["clip_id"].tolist()
        return dict(zip(clips, self.cache.frames(stream, clips), strict=True))

    def has_views(self, stream: str) -> bool:
        """Whether a stream has an axis of views: of whole-clip and ragged streams there is one array a clip."""
        return bool(self.cache.recipe(stream)["layout"] == "fixed")

    def check_view(self, view: int) -> None:
        """Refuse a view that a stream has not; ``OptionError``."""
        for stream in self.streams:
            if not self.has_views(stream):
                raise OptionError(f"--view {view}: stream {stream!r} has no views; leave it out.")
            views = self.cache.shape(stream)[0]
            if not 0 <= view < views:
                raise OptionError(f"--view {view}: stream {stream!r} has views 0 to {views - 1}.")

    @property
    def begun(self) -> bool:
        """Whether the folder holds part of an export."""
        return (self.folder / _MARKER).exists()

    def unclaim(self) -> None:
        """Give the folder back, after a refusal of an export that this call has begun."""
        (self.folder / _MARKER).unlink(missing_ok=True)

    def claim(self, **facts: Any) -> None:
        """Take the folder: a new or empty one, or one that holds part of this very export.

        Raises:
            OptionError: it holds anything else.
        """
        marker = self.folder / _MARKER
        if marker.exists():
            before = read_json(marker, "name an empty or new folder")
            if lines := differences(before, facts):
                raise OptionError(
                    f"{self.folder} holds another export ({'; '.join(lines)}); name an empty or new folder."
                )
            clean(self.folder)
            return
        if self.folder.exists():
            if not all(path.name.startswith(".") and path.name.endswith(PARTIAL) for path in self.folder.iterdir()):
                raise OptionError(f"{self.folder} holds other files; name an empty or new folder.")
            clean(self.folder)  # of a call that was killed while it took the folder
        with atomic(marker) as temporary:
            temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def claim_stream(self, **facts: Any) -> str:
        """``claim`` of an export of one stream; its name."""
        (stream,) = self.streams
        self.claim(stream=stream, recipe=self.cache.recipe(stream), **facts)
        return stream

    def arrays(self, view: int | None = None, progress: bool = True) -> Iterator[tuple[Row, dict[str, NDArray[Any]]]]:
        """Every clip's manifest row and its arrays by stream: [V, …], or […] of one view or without views."""
        rows = json_rows(self.rows)
        title = ", ".join(self.streams)
        with progress_of(title, len(rows), "clips", shown=progress) as bar:
            for i in range(0, len(rows), _READ):
                part = rows[i : i + _READ]
                clips = [row["clip_id"] for row in part]
                found = {stream: self.cache.read(stream, clips, view) for stream in self.streams}
                for number, row in enumerate(part):
                    yield row, {stream: np.asarray(arrays[number]) for stream, arrays in found.items()}
                    bar.update()

    def finish(self, report: ExportReport, frames: dict[str, NDArray[np.int32]] | None = None) -> ExportReport:
        """Write the manifest of what was exported, with a column of source frames if they are given."""
        rows = self.rows
        if frames is not None:
            rows = rows.assign(**{FRAMES: [" ".join(map(str, frames[c].tolist())) for c in rows["clip_id"]]})
        write_manifest(rows, self.folder / MANIFEST, allow_absolute=True)  # as the cache has them
        if lacking := len(self.cache.clips) - len(self.rows):
            report.notes.append(f"{lacking} clips of the cache have no {' and '.join(self.streams)}")
        return report
