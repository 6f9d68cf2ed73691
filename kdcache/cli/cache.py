"""Commands on a cache: inspect, verify, reindex, copy, show."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kdcache.cli.common import method_option, out_option
from kdcache.cli.printing import report, report_options
from kdcache.log import quiet


@click.command()
@click.argument("cache", type=click.Path(exists=True, path_type=Path))
@report_options
def inspect(cache: Path, as_json: bool, out: str) -> None:
    """Describe a cache or one shard: streams, axes, shapes, recipes, clips, sizes, versions, failures.

    \b
    Example:
      kdcache inspect out/
      kdcache inspect out/shard-00000.h5
    """
    from kdcache.store import describe
    from kdcache.streams import axes_of

    report(describe(cache, axes_of), as_json, out)


@click.command()
@click.argument("cache", default="out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repair", is_flag=True, help="Drop damaged clips from the index, so that the next extract redoes them.")
@report_options
def verify(cache: Path, repair: bool, as_json: bool, out: str) -> None:
    """Re-hash every cached array and name each damaged clip. Exit status 1 if there is damage that was not repaired.

    \b
    Example:
      kdcache verify out/ --repair
    """
    from kdcache.store import verify as check

    found = check(cache, repair=repair)
    report(found, as_json, out)
    if not found.ok and (found.foreign or not repair):
        sys.exit(1)


@click.command()
@click.argument("cache", default="out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--keep-edits", is_flag=True, help="Take manifest.csv as you have edited it, instead of rebuilding it.")
def reindex(cache: Path, keep_edits: bool) -> None:
    """Rebuild the cache's manifest.csv from its shards alone.

    \b
    Example:
      kdcache reindex out/
      kdcache reindex out/ --keep-edits
    """
    from kdcache.store import reindex as rebuild

    click.echo(f"{cache / 'manifest.csv'}: {len(rebuild(cache, keep_edits))} clips")


@click.command()
@click.argument("cache")
@click.argument("target")
@click.option("--verify", is_flag=True, help="Hash every file at both ends again, also those copied before.")
@report_options
def copy(cache: str, target: str, verify: bool, as_json: bool, out: str) -> None:
    """Copy a cache to another folder, to a bucket, or back; only what is missing or differs is sent.

    Either may be an address such as s3://bucket/prefix. An interrupted copy goes on where it was.

    \b
    Example:
      kdcache copy out/ s3://bucket/caches/epic
      kdcache copy s3://bucket/caches/epic out/ --verify
    """
    import kdcache

    report(kdcache.copy(cache, target, verify=verify), as_json, out)


@click.command()
@click.argument("cache", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("clip")
@out_option(former=["--output"], type=click.Path(path_type=Path), help="Picture to write.  [default: sheets/CLIP.png]")
@click.option(
    "--run",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Below the streams, what this run sees in the clip: attention, motion, weights of frames, as its method has.",
)
@click.option("--which", type=click.Choice(["last", "best"]), help="Which weights of the run.  [default: last]")
@method_option
def show(cache: Path, clip: str, out: Path | None, run: Path | None, which: str | None) -> None:
    """Draw one clip's streams as a contact sheet: frames, flow, trajectories, motion map, feature energy.

    \b
    Example:
      kdcache show out/ push-left-00-action -o sheet.png
      kdcache show out/ S2_Cheese_C1-012 --run runs/imprint-0
    """
    import kdcache

    if which is not None and run is None:
        raise click.UsageError("--which chooses among the weights of a run: give --run too.")
    with quiet():  # how a run was trained is not of interest here; warnings are
        path = kdcache.show(cache, clip, out, run, which or "last")
    click.echo(path)
