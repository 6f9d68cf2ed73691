"""Commands on what goes into a cache: check, idt, datasets, weights."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import SOME_FAILED, Group, PlacePath, out_option, root_option, source_cache_options
from kdcache.cli.printing import STDOUT, report, report_options
from kdcache.errors import KdcacheError


@click.command()
@click.argument("files", nargs=-1, required=True, type=PlacePath())
@source_cache_options
@report_options
def check(
    files: tuple[Path | str, ...], source_cache: Path | None, source_cache_gb: float | None, as_json: bool, out: str
) -> None:
    """Decode videos from start to end and say which are damaged. Exit status 3 if any is.

    Videos at addresses (s3://…, https://…) are fetched first.

    \b
    Example:
      kdcache check videos/*.mp4
    """
    from kdcache.sources import SourceCache, at_hand
    from kdcache.sources import check as decode

    cache = SourceCache.of(source_cache, source_cache_gb)
    found: list[dict[str, Any]] = []
    lines: list[str] = []
    for file in files:
        try:
            with at_hand(file, cache) as path:
                its = decode(path)
            lines.append(f"{file}: {its.width}×{its.height}, {its.duration_s:.2f} s, {its.codec}, {its.backend}: whole")
            found.append({"file": file, "problem": "", **asdict(its)})
        except KdcacheError as error:
            problem = str(error) if str(file) in str(error) else f"{file}: {error}"  # which names the fetched copy
            lines.append(problem)
            found.append({"file": file, "problem": problem})
        if not as_json and out == STDOUT:  # each as it is known: a folder of videos takes hours
            click.echo(lines[-1])
    if as_json or out != STDOUT:
        report(found if as_json else "\n".join(lines), as_json, out)
    if any(each["problem"] for each in found):
        sys.exit(SOME_FAILED)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@out_option(
    former=["--output"],
    default=STDOUT,
    show_default=True,
    help="File to write, gzipped if it ends in .gz; - is stdout.",
)
@click.option("--descriptors/--no-descriptors", default=True, help="436 columns, or the first 40.  [default: 436]")
@click.option("--start", "start_s", type=float, help="Second at which to start.")
@click.option("--stop", "stop_s", type=float, help="Second at which to stop.")
@click.option("--fps", type=float, help="Frame rate of a folder or tar of frames.")
def idt(source: Path, out: str, **options: Any) -> None:
    """Write the improved dense trajectories of a video, one a line, as the original program prints them.

    436 columns separated by tabs: end frame, means and deviations of x and y, length, scale, position in x, y and
    time, 30 of shape, HOG 96, HOF 108, MBHx 96, MBHy 96.

    \b
    Example:
      kdcache idt video.mp4 -o video.features.gz
      kdcache idt video.mp4 --no-descriptors --start 10 --stop 20 > tracks.txt
    """
    from kdcache.motion.idt_file import write_trajectories

    count = write_trajectories(source, out, **options)
    if out != STDOUT:
        click.echo(f"{out}: {count} trajectories")


@click.command("datasets")
@click.argument("name", required=False)
@root_option
@report_options
def list_datasets(name: str | None, root: Path | None, as_json: bool, out: str) -> None:
    """List the datasets that extract knows; with NAME its options and layout, with --root what is found there.

    \b
    Example:
      kdcache datasets
      kdcache datasets epic
      kdcache datasets --root /data/epic
    """
    from kdcache import datasets

    explained = [] if name is None else [datasets.description(name)]
    listed = {
        each: datasets.describe(each) if root is None else datasets.status(each, root)
        for each in (datasets.names() if name is None else [name] if root else [])
    }
    if as_json:
        status = "text" if root is None else "found"
        found = [{"name": each, status: text} for each, text in listed.items()]
        report({**asdict(explained[0]), **(found[0] if found else {})} if explained else found, as_json, out)
        return
    lines = [*map(str, explained), *(f"{each:12s} {text}" for each, text in listed.items())]
    report("\n".join(lines), as_json, out)


@click.group(cls=Group)
def weights() -> None:
    """Find, fetch and list the checkpoints of backbones.

    \b
    Example:
      kdcache weights list
    """


@weights.command("list")
@report_options
def list_weights(as_json: bool, out: str) -> None:
    """List known checkpoints: where they come from, their licence, whether they are on this machine.

    \b
    Example:
      kdcache weights list
    """
    from kdcache.backbones import weights as registry

    rows, lines = registry.list_weights(), list[str]()
    for row in rows:
        adapted = f"; adapted for {' and '.join(row['adapted_for'])}" if row["adapted_for"] else ""
        lines.append(f"{row['name']}  ({row['backbone']}{adapted}, {row['licence']})")
        lines.append(f"    {'here: ' + row['path'] if row['path'] else 'not here; ' + row['url']}")
        lines.append(f"    {row['checksum']}; {row['preprocessing']}")
    report(rows if as_json else "\n".join(lines), as_json, out)


@weights.command("fetch")
@click.argument("name")
def fetch_weights(name: str) -> None:
    """Download a published checkpoint and check its digest.

    \b
    Example:
      kdcache weights fetch i3d-rgb
    """
    from kdcache.backbones import weights as registry

    with registry.asked_by(""):
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

    with registry.asked_by(""):
        click.echo(registry.path(name))
