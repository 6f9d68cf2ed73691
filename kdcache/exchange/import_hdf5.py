"""Import features kept in an HDF5 file into a cache."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdcache.errors import OptionError
from kdcache.exchange.arrays import ArrayOptions, Per
from kdcache.exchange.hdf5_files import Hdf5Arrays, Hdf5Rows, open_hdf5
from kdcache.exchange.import_arrays import import_arrays
from kdcache.exchange.importing import ImportReport, manifest_rows
from kdcache.store.layout import StrPath


def import_hdf5(
    path: StrPath,
    manifest: StrPath | pd.DataFrame,
    out: StrPath = "out",
    *,
    stream: str,
    origin: str,
    ids: str | None = None,
    data: str | None = None,
    views: bool = False,
    axes: str | None = None,
    levels: bool = False,
    dtype: str | None = None,
    at: str | None = None,
    key: str | None = None,
    per: Per = "clip",
    fps: float | None = None,
    offset: float = 0.0,
    allow_absolute: bool = False,
    progress: bool = True,
) -> ImportReport:
    """Import an HDF5 file as a stream: one data set a clip (``class/clip`` may be a group), or one array for all.

    Args:
        path: the file. Links, other files' bytes and objects are never followed.
        ids: data set that names the rows of one array, text or whole numbers ``[n]``; default: one data set a clip.
        data: with ``ids``, that array, ``[n, …]``; default: the only other data set with ``n`` rows.
        key: path of a clip's data set, or name of its row: manifest columns in braces, such as
            ``features/{clip_id}``; default ``{clip_id}``, or ``{source}`` per source.

    All others, what it returns and raises as of ``import_npy``.
    """
    options = ArrayOptions(
        views=views, axes=axes, levels=levels, dtype=dtype, at=at, key=key, per=per, fps=fps, offset=offset
    )
    if data is not None and ids is None:
        raise OptionError(f"--data {data}: an array of all clips needs --ids, the data set that names its rows.")
    path = Path(path)
    rows = manifest_rows(manifest, allow_absolute)
    with open_hdf5(path) as file:
        if ids is None:
            return import_arrays(Hdf5Arrays(path, file), rows, Path(out), stream, origin, options, progress)
        return import_arrays(Hdf5Rows(path, file, ids, data), rows, Path(out), stream, origin, options, progress)
