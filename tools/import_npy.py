"""Import a folder of ``.npy`` features, one file a clip, into a cache.

    python tools/import_npy.py features/ --manifest clips.csv --out out --stream r3d/pool --origin "R3D-18, Kinetics"

``<clip_id>.npy`` holds one array, ``[T, d]``, ``[C, T, H, W]`` or any other shape that all clips share; with
``--views`` its first axis counts views, else it becomes the one view of its clip. What the other axes are goes into the
recipe, and training refuses what does not fit: ``[T, d]`` are time steps unless ``--levels`` says that they are
observation levels, and those of maps are named by ``--axes``, for example ``--axes VCTHW``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from exchange import Item, Row, import_clips, imported_recipe, parse_frames
from kdcache.cli.common import sentences
from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.manifest import read_manifest
from kdcache.store.layout import DTYPES
from npy_files import find

Kind = tuple[str, tuple[int, ...]]  # dtype and shape


def open_array(path: Path) -> NDArray[Any]:
    """Map a ``.npy`` file into memory; pickled objects are refused, and so is a file shorter than its header says.

    Raises:
        ClipError: it cannot be read.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ClipError(
            f"{path} is not a .npy file that can be read ({error}); write it again with numpy.save."
        ) from error


def survey(folder: Path, clips: list[str]) -> Kind:
    """The one dtype and shape of the clips' files; only their headers are read. Missing and broken ones are left out.

    Raises:
        SourceError: two files differ, or none can be read, or a dtype that a cache does not hold.
    """
    examples: dict[Kind, Path] = {}
    counts: Counter[Kind] = Counter()
    problem = f"{folder}: not one of the manifest's {len(clips)} clips has a .npy file here; check --manifest."
    for clip in tqdm(clips, unit="file", desc="headers", disable=None):
        try:
            path = find(folder, clip)
            array = open_array(path)
        except ClipError as error:
            problem = f"{folder}: none of the {len(clips)} clips can be read; the last: {error}"
            continue
        kind = array.dtype.newbyteorder("=").name, array.shape
        examples.setdefault(kind, path)
        counts[kind] += 1
    if not counts:
        raise SourceError(problem)
    (most, number), *others = counts.most_common()
    if others:
        odd = others[-1][0]
        raise SourceError(
            f"{examples[odd]}: {odd[0]} {list(odd[1])}, where {number} files such as {examples[most].name} hold "
            f"{most[0]} {list(most[1])}; a stream has one shape and dtype: import them as streams of their own."
        )
    if most[0] not in DTYPES:
        raise SourceError(f"{examples[most]}: {most[0]} cannot be cached; save it as one of {', '.join(DTYPES)}.")
    return most


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--manifest", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default="out", show_default=True, type=click.Path(path_type=Path), help="The cache.")
@click.option("--stream", required=True, help="Name of the stream, such as r3d/pool.")
@click.option(
    "--origin", required=True, help='What computed the features, such as "R3D-18, Kinetics"; kept in the recipe.'
)
@click.option("--views", is_flag=True, help="The first axis of each array counts views.")
@click.option(
    "--axes", help="Of the arrays with V for views, of V N T C H W D, such as VCTHW.  [default: VD or VTD for vectors]"
)
@click.option("--levels", is_flag=True, help="Vectors [N, d] stand for observation levels: as --axes VND.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of the cache.  [default: as in the files]")
@click.option(
    "--at", metavar="COLUMN", help="Column that lists the source frames of each clip (export_npy.py: frames)."
)
def main(
    folder: Path,
    manifest: Path,
    out: Path,
    stream: str,
    origin: str,
    views: bool,
    axes: str | None,
    levels: bool,
    dtype: str | None,
    at: str | None,
) -> None:
    """Import FOLDER's <clip_id>.npy files.

    Files of different shapes stop the import before anything is written; a file that is missing or broken is listed in
    failures.csv, and the exit status is then 3.
    """
    with sentences():
        rows = read_manifest(manifest)
        frames = parse_frames(rows, at) if at is not None else {}
        rows = rows.drop(columns=[] if at is None else at)
        found, shape = survey(folder, rows["clip_id"].tolist())
        if dtype is not None and not found.startswith("float"):
            raise OptionError(f"--dtype {dtype}: the files hold {found}, which is kept as it is; leave it out.")
        if views and len(shape) < 2:
            raise OptionError(
                f"--views: arrays of shape {list(shape)} have no axis beside that of views; leave it out."
            )
        none = np.empty(0, np.int32)

        def read(row: Row) -> Item:
            array = np.array(open_array(find(folder, row["clip_id"])))
            return Item(array if views else array[None], frames.get(row["clip_id"], none))

        full = shape if views else (1, *shape)
        recipe = imported_recipe(stream, full, dtype or found, "npy", origin, axes, levels)
        report = import_clips(rows, out, recipe, read)
    report.finish()


if __name__ == "__main__":
    main()
