"""The command line: parse, call the Python function of the same name, print."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kdcache import __version__
from kdcache.errors import KdcacheError, OptionError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
SOME_FAILED = 3  # exit status: the run ended, but clips are listed in failures.csv
STOPPED = 143  # exit status after SIGTERM or Ctrl-C: what was finished is kept

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """A group whose commands print a ``KdcacheError`` as one sentence and exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KdcacheError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="kdcache")
def main() -> None:
    """Extract frozen video features once, then train distillation heads on them as often as you like.

    \b
    Example:
      kdcache demo
      kdcache extract --manifest clips.csv --root videos/ --layer mixed4a
      kdcache train anticipation --shards out/
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def _pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Parse repeated ``key=value`` options."""
    out = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise OptionError(f"{option} {text!r}: write {option} key=value.")
        out[key] = value
    return out


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; the rest keeps the default of the function they go to."""
    return {name: value for name, value in options.items() if value is not None}


root_option = click.option(
    "--root",
    envvar="KDCACHE_DATA",
    type=click.Path(path_type=Path),
    help="Folder that sources are relative to.  [env: KDCACHE_DATA]",
)
shards_option = click.option(
    "--shards", default="out", show_default=True, type=click.Path(path_type=Path), help="The cache that extract wrote."
)

# ---------------------------------------------------------------------------
# extract
# ---------------------------------------------------------------------------


def _settings(command: Command) -> Command:
    """The options that change what is cached: the fields of ``kdcache.streams.Settings``."""
    options = [
        click.option("--frames", type=int, help="Frames of a segment.  [default: the backbone's]"),
        click.option("--fps", type=float, help="Sampling rate.  [default: the dataset's, or spread over the clip]"),
        click.option(
            "--anchor", type=click.Choice(["first", "centre", "last"]), help="Where a segment of fixed rate lies."
        ),
        click.option("--size", type=int, help="Side in pixels of a backbone's input.  [default: the backbone's]"),
        click.option("--resize", type=int, help="Short side in pixels before cropping.  [default: 8/7 of --size]"),
        click.option("--views", help="Crops and flips to cache, such as centre,centre-flip.  [default: centre]"),
        click.option(
            "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Backbone arithmetic.  [default: fp32]"
        ),
        click.option(
            "--dtype", type=click.Choice(["float16", "float32"]), help="Type of features.  [default: float16]"
        ),
        click.option("--short-side", type=int, help="Short side in pixels of rgb, flow and idt.  [default: 256]"),
        click.option("--rgb", type=click.Choice(["jpeg", "raw"]), help="How rgb frames are kept.  [default: jpeg]"),
        click.option("--quality", type=int, help="JPEG quality.  [default: 95]"),
        click.option("--flow", type=click.Choice(["uint8", "float16"]), help="Type of flow.  [default: uint8]"),
        click.option("--bound", type=float, help="Flow beyond this many pixels is clipped.  [default: 20]"),
        click.option(
            "--decoder", type=click.Choice(["auto", "decord", "pyav"]), help="Video decoder.  [default: auto]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.option("--manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV of clips.")
@click.option("--dataset", help="Make the manifest from a dataset's annotations; see `kdcache datasets`.")
@root_option
@click.option("--out", default="out", show_default=True, type=click.Path(path_type=Path), help="The cache to fill.")
@click.option("--stream", "streams", multiple=True, help="rgb, flow, flow-warped, idt or BACKBONE/LAYER; repeatable.")
@click.option("--layer", "layers", multiple=True, help="Layer of --backbone; repeatable.  [default: mixed4a]")
@click.option("--backbone", default="i3d-rgb", show_default=True, help="The backbone that --layer belongs to.")
@click.option(
    "--weights", multiple=True, metavar="[BACKBONE=]FILE|random:SEED", help="Default: the published checkpoint."
)
@_settings
@click.option("--codec", type=click.Choice(["zstd"]), help="Compress shards.  [default: none, the fastest to read]")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch", type=click.IntRange(1), help="Segments a backbone takes at once.")
@click.option("--part", metavar="I/N", help="Do the I-th of N parts of the work (job arrays).")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Option of the dataset, such as tau=2; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, its size and time; write nothing.")
@click.option("--retry-failed", is_flag=True, help="Try clips again that are listed in failures.csv.")
def extract(
    manifest: Path | None,
    dataset: str | None,
    root: Path | None,
    streams: tuple[str, ...],
    layers: tuple[str, ...],
    backbone: str,
    weights: tuple[str, ...],
    views: str | None,
    part: str | None,
    sets: tuple[str, ...],
    **options: Any,
) -> None:
    """Decode clips once and cache their streams in shards.

    Only what the cache lacks is computed; an unchanged second call decodes nothing. Exit status 3 says that some
    clips failed: OUT/failures.csv lists them.

    \b
    Example:
      kdcache extract --dataset epic --layer mixed4a --root /data/epic
      kdcache extract --manifest clips.csv --root videos/ --stream i3d-rgb/mixed4a --stream flow --workers 2
    """
    import kdcache

    rows, defaults = _clips(manifest, dataset, root, sets)
    names = [*streams, *(f"{backbone}/{layer}" for layer in layers)] or ["i3d-rgb/mixed4a"]
    settings = {**defaults, **_given(options), **_given({"views": views.split(",") if views else None})}
    report = kdcache.extract(
        rows, root=root or Path(), streams=names, weights=_weights(weights, names), part=_part(part), **settings
    )
    click.echo(report)
    if report.stopped:
        sys.exit(STOPPED)
    if report.failures and not options["dry_run"]:
        sys.exit(SOME_FAILED)


def _clips(
    manifest: Path | None, dataset: str | None, root: Path | None, sets: tuple[str, ...]
) -> tuple[Any, dict[str, Any]]:
    """The rows to extract, and the settings that their dataset asks for."""
    if (manifest is None) == (dataset is None):
        raise OptionError("Say which clips: either --manifest clips.csv or --dataset NAME (see `kdcache datasets`).")
    from kdcache import datasets

    if manifest is not None:
        if sets:
            raise OptionError("--set belongs to --dataset; a manifest has no options.")
        if root is None:
            raise OptionError("Say where the videos are: --root FOLDER, or set KDCACHE_DATA.")
        return manifest, {}
    assert dataset is not None
    if root is None:
        raise OptionError(
            f"Say where {dataset} lies: --root FOLDER, or set KDCACHE_DATA. Expected layout:\n{datasets.layout(dataset)}"
        )
    rows = datasets.manifest_for(dataset, root, **_pairs(sets, "--set"))
    return rows, datasets.settings(dataset)


def _weights(texts: tuple[str, ...], streams: list[str]) -> dict[str, str]:
    """``i3d-rgb=FILE`` names its backbone; a bare ``FILE`` or ``random:0`` is for every backbone of the call."""
    heads = {name.partition("/")[0] for name in streams if "/" in name}
    out: dict[str, str] = {}
    for text in texts:
        head, equals, value = text.partition("=")
        out |= {head: value} if equals and head in heads else dict.fromkeys(heads, text)
    return out


def _part(text: str | None) -> tuple[int, int]:
    number, slash, parts = (text or "1/1").partition("/")
    if not (slash and number.isdigit() and parts.isdigit()):
        raise OptionError(f"--part {text}: write I/N, such as 2/8.")
    return int(number), int(parts)


# ---------------------------------------------------------------------------
# the cache
# ---------------------------------------------------------------------------


@main.command()
@click.argument("cache", type=click.Path(exists=True, path_type=Path))
def inspect(cache: Path) -> None:
    """Say what a cache or one shard holds: streams, shapes, recipes, clips, sizes, versions, failures.

    \b
    Example:
      kdcache inspect out/
      kdcache inspect out/shard-00000.h5
    """
    from kdcache.store import inspect as describe

    click.echo(describe(cache))


@main.command()
@click.argument("cache", default="out", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repair", is_flag=True, help="Drop damaged clips from the index, so that the next extract redoes them.")
def verify(cache: Path, repair: bool) -> None:
    """Re-hash every cached array and name each damaged clip. Exit status 1 if there is damage that was not repaired.

    \b
    Example:
      kdcache verify out/ --repair
    """
    from kdcache.store import verify as check

    report = check(cache, repair=repair)
    click.echo(report)
    if report.damaged and not repair:
        sys.exit(1)


@main.command()
@click.argument("cache", default="out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def reindex(cache: Path) -> None:
    """Rebuild the cache's manifest.csv from its shards alone.

    \b
    Example:
      kdcache reindex out/
    """
    from kdcache.store import reindex as rebuild

    click.echo(f"{cache / 'manifest.csv'}: {len(rebuild(cache))} clips")


@main.command()
@click.argument("cache", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("clip")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Picture to write.  [default: CLIP.png]")
def show(cache: Path, clip: str, output: Path | None) -> None:
    """Draw one clip's streams as a contact sheet: frames, flow, trajectories, motion map, feature energy.

    \b
    Example:
      kdcache show out/ push-left-00-action -o sheet.png
    """
    import kdcache

    click.echo(kdcache.show(cache, clip, output))


# ---------------------------------------------------------------------------
# sources, datasets, weights
# ---------------------------------------------------------------------------


@main.command()
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


@main.command("datasets")
@root_option
def list_datasets(root: Path | None) -> None:
    """List the datasets that extract knows, with what is found under --root.

    \b
    Example:
      kdcache datasets --root /data
    """
    from kdcache import datasets

    for name in datasets.names():
        click.echo(f"{name:12s} {datasets.describe(name)}")


@main.command("manifest")
@click.argument("dataset")
@root_option
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Option of the dataset, such as tau=2; repeatable."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="CSV to write.")
def make_manifest(dataset: str, root: Path | None, sets: tuple[str, ...], output: Path) -> None:
    """Write the manifest of a dataset, to look at or to change before extracting it.

    \b
    Example:
      kdcache manifest folder --root videos/ --set observe=0.4 -o clips.csv
    """
    import kdcache

    rows, _ = _clips(None, dataset, root, sets)
    kdcache.write_manifest(rows, output)
    click.echo(f"{output}: {len(rows)} clips of {rows['source'].nunique()} sources")


@main.group()
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
        click.echo("  ".join(str(value) for value in row.values()))


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


# ---------------------------------------------------------------------------
# train, evaluate, demo
# ---------------------------------------------------------------------------


@main.command()
@click.argument("method")
@shards_option
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/METHOD-N]")
@click.option("--seed", default=0, show_default=True, help="Seed of initialisation, order and dropout.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16", "fp16"]))
@click.option("--stream", help="Which cached features to train on, if there are several.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Option of the method, such as lam=0.1; repeatable."
)
def train(method: str, shards: Path, sets: tuple[str, ...], **options: Any) -> None:
    """Train a head on cached features.

    \b
    Example:
      kdcache train anticipation --shards out/
      kdcache train anticipation --shards out/ --set loss_d=none --set head=light --seed 1
    """
    import kdcache
    from kdcache.training import parse_set

    run = kdcache.train(method, shards=shards, **_given(options), **parse_set(method, sets))
    click.echo(run)


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", help="Which split to evaluate.  [default: the one the run held out]")
def evaluate(run: Path, split: str | None) -> None:
    """Evaluate a finished run from its checkpoint and print its metrics.

    \b
    Example:
      kdcache evaluate runs/anticipation-0
    """
    import json

    import kdcache

    click.echo(json.dumps(kdcache.evaluate(run, split), indent=2))


@main.command()
@click.option(
    "--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder for everything."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the data set and of training.")
def demo(out: Path, seed: int) -> None:
    """Render a small data set, extract its streams, train with and without distillation: two minutes, no network.

    \b
    Example:
      kdcache demo
    """
    from kdcache.demo import run_demo

    run_demo(out, seed=seed)
