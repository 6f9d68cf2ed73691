"""Import a folder of ``.npy`` or ``.npz`` features, one file a clip or one a source, into a cache."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdcache.errors import SourceError
from kdcache.exchange.arrays import ArrayOptions, Per
from kdcache.exchange.import_arrays import import_arrays
from kdcache.exchange.importing import ImportReport, manifest_rows
from kdcache.exchange.npy_files import NpyFolder
from kdcache.store.layout import StrPath


def import_npy(
    folder: StrPath,
    manifest: StrPath | pd.DataFrame,
    out: StrPath = "out",
    *,
    stream: str,
    origin: str,
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
    """Import ``FOLDER/<clip_id>.npy`` as a stream.

    Arrays of one shape become a fixed stream, ``[V, …]`` a clip. Vectors ``[T_i, d]`` of different lengths become a
    ragged one, which ``Cache.read`` gives as a list.

    Args:
        folder: with ``<clip_id>.npy``, or ``.npz`` with one array; an id ``class/clip`` may be a folder.
        manifest: the clips, a CSV file or a table.
        out: the cache; made when absent.
        stream: name, such as ``r3d/pool``.
        origin: what computed the features, such as ``R3D-18, Kinetics``; kept in the recipe.
        views: the first axis of each array counts views; else it becomes the one view of its clip.
        axes: order of the axes: with V for views of arrays of one shape (``VCTHW``; default ``VD`` or ``VTD`` for
            vectors, not known for maps), with T first of arrays that differ in length (``TCHW``; default ``TD`` for
            vectors of different lengths). See ``kdcache.streams.axes``.
        levels: vectors ``[N, d]`` stand for observation levels: as ``axes="VND"``.
        dtype: ``float16`` or ``float32``; default as in the files.
        at: manifest column that lists the source frames of each clip, as ``12 13 14``.
        key: name of a clip's file, manifest columns in braces; default ``{clip_id}``, or ``{source}`` per source.
        per: ``source`` where a file holds a whole source, of which each clip gets the rows of its span
            (``kdcache.exchange.import_arrays.cut`` has the rule). The file of ``P01/a.mp4`` is then ``P01/a.mp4.npy``,
            ``P01/a.npy``, ``a.mp4.npy`` or ``a.npy``, the first there is.
        fps: with ``per="source"``, rows a second of the arrays.
        offset: with ``per="source"``, time of their first row, s. [reconstructed] Files do not say whether a row of a
            window of frames stands for the window's start, its centre or its end: 0 takes rows by the window's start.
        allow_absolute: sources may be absolute paths; an import opens none of them.
        progress: show a bar, when standard error is a terminal.

    Returns:
        What was imported, what failed and why (``failures.csv`` lists it too), and what no clip asked for.

    Raises:
        OptionError: options that contradict each other or do not fit the arrays.
        ManifestError: a manifest that breaks the contract.
        SourceError: no clip has a file, or files that do not make one stream; names one of each. Nothing is written.
        StoreError: the disk refuses, or the cache is damaged.
    """
    options = ArrayOptions(
        views=views, axes=axes, levels=levels, dtype=dtype, at=at, key=key, per=per, fps=fps, offset=offset
    )
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; name the one with the .npy files.")
    return import_arrays(
        NpyFolder(folder), manifest_rows(manifest, allow_absolute), Path(out), stream, origin, options, progress
    )
