"""Commands on what goes into a cache: check, idt, datasets, weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import SOME_FAILED, root_option
from kdcache.errors import KdcacheError


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Decode videos from start to end and say which are damaged. Exit status 3 if any is.

    \b
    Example:
      kdcache check videos/*.mp4
    """
    from kdcache.sources import check as decode

    bad = 0
    for file in files:
        try:
            info = decode(file)
            click.echo(
                f"{file}: {info.width}×{info.height}, {info.duration_s:.2f} s, {info.codec}, {info.backend}: whole"
            )
        except KdcacheError as error:
            bad += 1
            click.echo(str(error))
    if bad:
        sys.exit(SOME_FAILED)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", default="-", show_default=True, help="File to write, gzipped if it ends in .gz.")
@click.option("--descriptors/--no-descriptors", default=True, help="436 columns, or the first 40.  [default: 436]")
@click.option("--start", "start_s", type=float, help="Second at which to start.")
@click.option("--stop", "stop_s", type=float, help="Second at which to stop.")
@click.option("--fps", type=float, help="Frame rate of a folder or tar of frames.")
def idt(source: Path, output: str, **options: Any) -> None:
    """Write the improved dense trajectories of a video, one a line, as the original program prints them.

    436 columns separated by tabs: end frame, means and deviations of x and y, length, scale, position in x, y and
    time, 30 of shape, HOG 96, HOF 108, MBHx 96, MBHy 96.

    \b
    Example:
      kdcache idt video.mp4 -o video.features.gz
      kdcache idt video.mp4 --no-descriptors --start 10 --stop 20 > tracks.txt
    """
    from kdcache.motion.idt_file import STDOUT, write_trajectories

    count = write_trajectories(source, output, **options)
    if output != STDOUT:
        click.echo(f"{output}: {count} trajectories")


@click.command("datasets")
@click.argument("name", required=False)
@root_option
def list_datasets(name: str | None, root: Path | None) -> None:
    """List the datasets that extract knows; with NAME its options and layout, with --root what is found there.

    \b
    Example:
      kdcache datasets
      kdcache datasets epic
      kdcache datasets --root /data/epic
    """
    from kdcache import datasets

    if name is not None:
        click.echo(datasets.explain(name))
    for each in datasets.names() if name is None else [name] if root else []:
        click.echo(f"{each:12s} {datasets.describe(each) if root is None else datasets.status(each, root)}")


@click.group()
def weights() -> None:
    """Find, fetch and list the checkpoints of backbones.

    \b
    Example:
      kdcache weights list
    """


@weights.command("list")
def list_weights() -> None:
    """List known checkpoints: where they come from, their licence, whether they are on this machine.

    \b
    Example:
      kdcache weights list
    """
    from kdcache.backbones import weights as registry

    for row in registry.list_weights():
        adapted = f"; adapted for {' and '.join(row['adapted_for'])}" if row["adapted_for"] else ""
        click.echo(f"{row['name']}  ({row['backbone']}{adapted}, {row['licence']})")
        click.echo(f"    {'here: ' + row['path'] if row['path'] else 'not here; ' + row['url']}")
        click.echo(f"    {row['checksum']}; {row['preprocessing']}")


@weights.command("fetch")
@click.argument("name")
def fetch_weights(name: str) -> None:
    """Download a published checkpoint and check its digest.

    \b
    Example:
      kdcache weights fetch i3d-rgb
    """
    from kdcache.backbones import weights as registry

    click.echo(registry.fetch(name))


@weights.command("path")
@click.argument("name")
def weights_path(name: str) -> None:
    """Print where a checkpoint lies on this machine.

    \b
    Example:
      kdcache weights path i3d-rgb
    """
    from kdcache.backbones import weights as registry

    click.echo(registry.path(name))
