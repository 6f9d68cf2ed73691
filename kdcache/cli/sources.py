"""Commands on what goes into a cache: check, datasets, weights."""

from __future__ import annotations

import sys
from pathlib import Path

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
    """Find, fetch and list the checkpoints of backbones."""


@weights.command("list")
def list_weights() -> None:
    """List known checkpoints: where they come from, their licence, whether they are on this machine.

    \b
    Example:
      kdcache weights list
    """
    from kdcache.backbones import weights as registry

    for row in registry.list_weights():
        click.echo(f"{row['name']}  ({row['backbone']}, {row['licence']})")
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
