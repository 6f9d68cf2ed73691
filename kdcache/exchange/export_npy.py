"""Export a stream of a cache to a folder of ``.npy`` files, one a clip."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.exchange.exporting import Export, ExportReport
from kdcache.exchange.npy_files import file_name, flat_name, npy_bytes
from kdcache.files import temporary_name, writing
from kdcache.store.layout import StrPath


def export_npy(
    shards: StrPath, out: StrPath, *, stream: str, view: int | None = None, progress: bool = True
) -> ExportReport:
    """Export a stream to ``OUT/<clip_id>.npy``, in the cache's dtype, and ``OUT/manifest.csv``.

    ``import_npy(out, f"{out}/manifest.csv", views=True, at="frames")`` reads the same numbers back (ragged streams
    without ``views``). A second call writes only what is missing or has changed.

    Args:
        shards: the cache.
        out: a new or empty folder, or one with part of the same export. An id ``class/clip`` becomes a folder and a
            file; what could lead out of the folder is percent-encoded.
        stream: any; RGB frames come out as uint8 [T, H, W, 3].
        view: only this view, without the axis of views; default: all, V first.
        progress: show a bar, when standard error is a terminal.

    Raises:
        OptionError: unknown stream or view, or a folder that holds other files.
        StoreError: a damaged cache, or one that mixes recipes.
    """
    export = Export.open(shards, [stream], out)
    if view is not None:
        export.check_view(view)
    export.claim_stream(to="npy", view=view)
    report = ExportReport(export.folder, len(export.rows))
    for row, arrays in export.arrays(view, progress):
        if _save(export.folder, row["clip_id"], arrays[stream]):
            report.written += 1
        else:
            report.there += 1
    return export.finish(report, export.frames(stream))


def _save(folder: Path, clip_id: str, array: NDArray[Any]) -> bool:
    """Write a clip's array; whether that was needed (a file with the same bytes stays as it is)."""
    flat = folder / flat_name(clip_id)
    path = flat if flat.exists() else folder / file_name(clip_id)  # 0.1 wrote flat names: such an export goes on
    if path.exists():
        try:
            old = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            old = None
        same = isinstance(old, np.ndarray) and (old.dtype, old.shape) == (array.dtype, array.shape)
        if same and old.tobytes() == array.tobytes():
            return False
    # Not flushed to the disk one by one, which would take ten times as long: the same call again compares every byte.
    temporary = folder / temporary_name("clip")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(npy_bytes(array))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return True
