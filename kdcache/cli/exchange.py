"""Commands that bring features in and out: ``kdcache import`` and ``kdcache export``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.common import SOME_FAILED, Command, FolderPath, allow_absolute_option
from kdcache.cli.printing import json_option, report

if TYPE_CHECKING:
    from kdcache.exchange import ImportReport

_FOLDER = FolderPath()
_FOLDER_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed by ``--help`` in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _imported(found: ImportReport, as_json: bool) -> None:
    report(found, as_json)
    if found.failures:
        sys.exit(SOME_FAILED)


into_cache = _all(
    click.option("--manifest", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option("-o", "--out", default="out", show_default=True, type=_FOLDER, help="The cache."),
    click.option("--stream", required=True, help="Name of the stream, such as r3d/pool."),
    click.option("--origin", required=True, help='What computed the features, such as "R3D-18, Kinetics"; it is kept.'),
    allow_absolute_option,
)
dtype_option = click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), help="Of the cache.  [default: as in the files]"
)
at_option = click.option("--at", metavar="COLUMN", help="Column that lists the source frames of each clip: 12 13 14.")
array_options = _all(
    click.option("--views", is_flag=True, help="The first axis of each array counts views."),
    click.option(
        "--axes",
        help="Order of the axes, of V N T C H W D: with V for views of arrays of one shape (VCTHW), with T first of "
        "arrays that differ in length (TD, TCHW).  [default: VD, VTD or TD for vectors]",
    ),
    click.option("--levels", is_flag=True, help="Vectors [N, d] stand for observation levels: as --axes VND."),
    dtype_option,
    at_option,
    click.option(
        "--key", help="How arrays are named: manifest columns in braces.  [default: {clip_id}, or {source} per source]"
    ),
    click.option(
        "--per",
        default="clip",
        show_default=True,
        type=click.Choice(["clip", "source"]),
        help="What an array holds. Of a source's, each clip gets the rows of its span.",
    ),
    click.option("--fps", type=click.FloatRange(0, min_open=True), help="With --per source: rows a second."),
    click.option(
        "--offset", default=0.0, show_default=True, help="With --per source: time of the first row, in seconds."
    ),
)
cache_argument = click.argument("cache", type=_FOLDER_THERE)
export_out = click.option("-o", "--out", required=True, type=_FOLDER, help="New or empty, or of the same export.")


@click.group("import")
def import_group() -> None:
    """Bring features that were computed elsewhere into a cache.

    What is there already is not written again. A clip that cannot be imported is listed in failures.csv with its file,
    and the exit status is then 3.

    \b
    Example:
      kdcache import npy features/ --manifest clips.csv --stream r3d/pool --origin "R3D-18"
    """


@import_group.command("npy")
@click.argument("folder", type=_FOLDER_THERE)
@into_cache
@array_options
@json_option
def import_npy(folder: Path, as_json: bool, **options: Any) -> None:
    """Import FOLDER/<clip_id>.npy (or .npz with one array): one shape for all, or vectors [T, d] of any length.

    \b
    Example:
      kdcache import npy features/ --manifest clips.csv --stream r3d/pool --origin "R3D-18"
      kdcache import npy videos/ --manifest clips.csv --stream i3d/pool --origin I3D \\
          --per source --fps 1.5625
    """
    from kdcache import exchange

    _imported(exchange.import_npy(folder, **options), as_json)


@import_group.command("hdf5")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@into_cache
@click.option("--ids", metavar="DATASET", help="Names of the rows of one array.  [default: one data set a clip]")
@click.option("--data", metavar="DATASET", help="With --ids: that array.  [default: the only one with as many rows]")
@array_options
@json_option
def import_hdf5(path: Path, as_json: bool, **options: Any) -> None:
    """Import FILE with one data set a clip, named by its id (class/clip may be a group), or one array for all clips.

    \b
    Example:
      kdcache import hdf5 features.h5 --manifest clips.csv --stream r3d/pool --origin "R3D-18"
      kdcache import hdf5 all.h5 --manifest clips.csv --stream vit/image --origin CLIP \\
          --ids names --data features
    """
    from kdcache import exchange

    _imported(exchange.import_hdf5(path, **options), as_json)


@import_group.command("lmdb")
@click.argument("path", metavar="LMDB", type=click.Path(exists=True, path_type=Path))
@into_cache
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
@click.option("--at", metavar="COLUMN", help="Take the frames that this column lists, counted from 0, instead.")
@click.option("--levels", is_flag=True, help="The frames stand for observation levels (early recognition).")
@click.option(
    "--fps", default=30.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of the numbering."
)
@click.option("--first", default=1, show_default=True, type=click.IntRange(0), help="Number of a source's first frame.")
@click.option("--key", default="{group}_frame_{frame:010d}.jpg", show_default=True, help="Manifest columns in braces.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float16"]))
@json_option
def import_lmdb(path: Path, as_json: bool, **options: Any) -> None:
    """Import an LMDB of one float32 vector a frame, as RULSTM distributes them: each clip becomes [1, T, d].

    --frames T spreads the frames over the clip; --frames T --step S takes one each S seconds back from its end, as
    RULSTM does (--frames 14 --step 0.25, and --lag 0.25 where clips end when the action starts); --at COLUMN takes the
    ones listed.

    \b
    Example:
      kdcache import lmdb ek55/rgb --manifest clips.csv --stream rulstm/rgb \\
          --origin "RULSTM EK55 RGB" --frames 14 --step 0.25
    """
    from kdcache import exchange

    _imported(exchange.import_lmdb(path, **options), as_json)


@click.group("export")
def export_group() -> None:
    """Write streams of a cache in the formats of other tools.

    The same command again goes on where it was stopped. Beside the files lies manifest.csv.

    \b
    Example:
      kdcache export npy out/ --stream r3d/pool -o features/
    """


@export_group.command("npy")
@cache_argument
@export_out
@click.option("--stream", required=True, help="Any stream; RGB frames come out as uint8 [T, H, W, 3].")
@click.option(
    "--view", type=click.IntRange(0), help="Only this view, without the axis of views.  [default: all, V first]"
)
@json_option
def export_npy(cache: Path, as_json: bool, **options: Any) -> None:
    """Export a stream to <clip_id>.npy for each clip, in the cache's dtype.

    \b
    Example:
      kdcache export npy out/ --stream r3d/pool -o features/
    """
    from kdcache import exchange

    report(exchange.export_npy(cache, **options), as_json)


@export_group.command("lmdb")
@cache_argument
@export_out
@click.option("--stream", required=True, help="A stream of vectors, [V, N, d], [V, d] or [T, d].")
@click.option("--view", default=0, show_default=True, type=click.IntRange(0))
@click.option("--first", default=1, show_default=True, type=click.IntRange(0), help="Number of a source's first frame.")
@click.option(
    "--key", default="{clip_id}_frame_{frame:010d}.jpg", show_default=True, help="Manifest columns in braces."
)
@json_option
def export_lmdb(cache: Path, as_json: bool, **options: Any) -> None:
    """Export a stream of vectors to an LMDB that RULSTM's code reads: one float32 vector a frame.

    \b
    Example:
      kdcache export lmdb out/ --stream rulstm/rgb -o lmdb/rgb --key "{group}_frame_{frame:010d}.jpg"
    """
    from kdcache import exchange

    report(exchange.export_lmdb(cache, **options), as_json)


@export_group.command("webdataset")
@cache_argument
@export_out
@click.option("--stream", "streams", required=True, multiple=True, help="Any stream; give it again for more.")
@click.option("--name", default="clips", show_default=True, help="Shards are NAME-000000.tar, NAME-000001.tar …")
@click.option("--by", metavar="COLUMN", help="Shards of their own for each value of a manifest column, such as split.")
@click.option("--view", type=click.IntRange(0), help="Only this view, without the axis of views.  [default: all]")
@click.option(
    "--shard-size",
    default=1000.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Size in MB at which a shard closes.",
)
@click.option("--shuffle", metavar="SEED", type=click.IntRange(0), help="Clips in a random order.")
@json_option
def export_webdataset(cache: Path, streams: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Export streams to tar files that the WebDataset library reads: a sample a clip, with its manifest row as JSON.

    \b
    Example:
      kdcache export webdataset out/ --stream i3d-rgb/mixed4a --stream flow -o wds/ --by split
    """
    from kdcache import exchange

    report(exchange.export_webdataset(cache, streams=list(streams), **options), as_json)
