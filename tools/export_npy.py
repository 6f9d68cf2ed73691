"""Export a stream of a cache to a folder of ``.npy`` files, one a clip, with a ``manifest.csv``.

    python tools/export_npy.py out features/ --stream i3d-rgb/mixed4a

``import_npy.py features/ --manifest features/manifest.csv --views --at frames`` reads the same numbers back.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from exchange import Export
from kdcache.cli.common import sentences
from kdcache.files import temporary_name
from npy_files import file_name


def save(path: Path, array: NDArray[Any]) -> bool:
    """Write an array; whether that was needed (a file with the same bytes stays as it is)."""
    if path.exists():
        try:
            old = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            old = None
        same = isinstance(old, np.ndarray) and (old.dtype, old.shape) == (array.dtype, array.shape)
        if same and old.tobytes() == array.tobytes():
            return False
    # Not flushed to the disk one by one, which would take ten times as long: the same call again compares every byte.
    temporary = path.with_name(temporary_name("clip"))
    try:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


@click.command()
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--stream", required=True, help="Any stream; RGB frames come out as uint8 [T, H, W, 3].")
@click.option(
    "--view", type=click.IntRange(0), help="Only this view, without the axis of views.  [default: all, V first]"
)
def main(shards: Path, folder: Path, stream: str, view: int | None) -> None:
    """Export a stream: FOLDER/<clip_id>.npy for each clip, in the cache's dtype, and FOLDER/manifest.csv.

    The same command again writes only what is missing or has changed.
    """
    with sentences():
        export = Export.open(shards, stream, folder)
        if view is not None:
            export.check_view(view)
        export.claim(to="npy", view=view)
        counts: Counter[str] = Counter()
        for row, array in export.arrays(view):
            counts["written" if save(folder / file_name(row["clip_id"]), np.asarray(array)) else "there"] += 1
        export.finish(counts, "files")


if __name__ == "__main__":
    main()
