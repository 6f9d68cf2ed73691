"""``kdcache extract`` and ``kdcache manifest``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdcache import datasets
from kdcache.cli.common import (
    SOME_FAILED,
    STOPPED,
    allow_absolute_option,
    by_backbone,
    cluster_options,
    folder_option,
    given,
    out_option,
    pairs,
    root_option,
    roots_option,
    source_cache_options,
)
from kdcache.cli.explained import ExplainedCommand, of_dataset
from kdcache.cli.fields import field_options
from kdcache.cli.printing import STDOUT, json_option, report
from kdcache.errors import OptionError
from kdcache.log import EachOnce, logger
from kdcache.roots import is_absolute
from kdcache.splits import without_splits
from kdcache.streams.settings import StreamSettings


@click.command(cls=ExplainedCommand, explain=of_dataset)
@click.option("--manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV of clips.")
@click.option("--dataset", help="Make the manifest from a dataset's annotations; see `kdcache datasets`.")
@roots_option
@allow_absolute_option
@source_cache_options
@folder_option(default="out", show_default=True, help="The cache to fill.")
@click.option("--stream", "streams", multiple=True, help="rgb, flow, flow-warped, idt or BACKBONE/LAYER; repeatable.")
@click.option("--for", "method", metavar="METHOD", help="Exactly the streams that this method's stages read.")
@click.option("--preset", help="With --for: the paper's settings for a dataset.")
@click.option("--layer", "layers", multiple=True, help="Layer of --backbone; repeatable.  [default: mixed4a]")
@click.option("--backbone", default="i3d-rgb", show_default=True, help="The backbone that --layer belongs to.")
@click.option(
    "--weights", multiple=True, metavar="[BACKBONE=]FILE|random:SEED", help="Default: the published checkpoint."
)
@field_options(StreamSettings)
@click.option("--codec", type=click.Choice(["zstd"]), help="Compress shards.  [default: none, the fastest to read]")
@cluster_options
@click.option("--device", default="auto", show_default=True, help="auto (all GPUs), cpu, cuda or cuda:N,…")
@click.option("--batch", type=click.IntRange(1), help="Segments a backbone takes at once.")
@click.option("--compile", is_flag=True, help="Compile networks (torch.compile), on a GPU.")
@click.option("--part", metavar="I/N", help="Do the I-th of N parts of the work (job arrays).")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Option of the dataset, such as tau=2; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, its size and time; write nothing.")
@click.option("--retry-failed", is_flag=True, help="Try clips again that are listed in failures.csv.")
@click.option("--rehash", is_flag=True, help="Read all sources whole; redo the clips of those that have changed.")
@json_option
def extract(
    manifest: Path | None,
    dataset: str | None,
    root: tuple[Path, ...] | None,
    allow_absolute: bool,
    streams: tuple[str, ...],
    method: str | None,
    preset: str | None,
    layers: tuple[str, ...],
    backbone: str,
    weights: tuple[str, ...],
    part: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Decode clips once and cache their streams in shards.

    Only what the cache lacks is computed; an unchanged second call decodes nothing. Exit status 3 says that some
    clips failed: OUT/failures.csv lists them. `kdcache extract --dataset NAME --help` lists the options of a dataset.
    --json prints a list with one report, or one for each pass that --for needs.

    \b
    Example:
      kdcache extract --dataset epic --layer mixed4a --root /data/epic --workers 2
      kdcache extract --manifest clips.csv --root videos/ --stream i3d-rgb/mixed4a --stream flow
      kdcache extract --dataset ucf101 --root /data/ucf101 --for early
    """
    from kdcache.methods import load_method
    from kdcache.runs import presets
    from kdcache.runs.requirements import ExtractionCall, extraction_calls

    calls = [ExtractionCall(tuple(stream_names(streams, layers, backbone)), {}, ())] if method is None else []
    if method is None and preset is not None:
        raise OptionError("--preset is of a method: say which with --for METHOD.")
    if method is not None and (streams or layers):
        raise OptionError("--for says which streams: leave --stream and --layer out.")
    if method is not None:
        method = load_method(method)
        if preset is not None:
            presets.preset(method, preset)  # refused before torch is imported
        calls = extraction_calls(method, preset)
    rows, defaults = clip_rows(manifest, dataset, root, sets, allow_absolute)
    if any(call.in_pairs for call in calls):
        refuse_without_pairs(rows, str(method), dataset)
    from kdcache.extraction.run import ExtractReport
    from kdcache.extraction.run import extract as run_extraction

    reports = list[ExtractReport]()
    with EachOnce():  # what is said of the manifest is the same for every call
        for call in calls:
            chosen = {**call.settings, **given(options)}
            if method is not None:
                said = "".join(f" {name}={value}" for name, value in chosen.items() if name in call.settings)
                logger.info("%s reads %s%s%s", method, call, said and ":", said)
            names = list(call.streams)
            its = run_extraction(
                rows,
                root=root,
                allow_absolute=allow_absolute,
                streams=names,
                weights=by_backbone(weights, names),
                part=_part(part),
                **{**defaults, **chosen},
            )
            reports.append(its)
            if not as_json:
                report(its, as_json)
            if its.stopped:
                break
    if as_json:
        report(reports, as_json)
    if reports[-1].stopped:
        sys.exit(STOPPED)
    if any(its.failures for its in reports) and not options["dry_run"]:
        sys.exit(SOME_FAILED)


def refuse_without_pairs(rows: Any, method: str, dataset: str | None) -> None:
    """A method that reads pairs of clips finds none in a manifest without these columns."""
    from kdcache.data.pairs import PAIRS_HELP

    columns = _head(rows)[0] if isinstance(rows, Path) else list(rows.columns)
    missing = [name for name in ("pair", "role") if name not in columns]
    if not missing:
        return
    if dataset is None:
        raise OptionError(f"{method} reads pairs of clips, and the manifest has no column {missing[0]!r}: {PAIRS_HELP}")
    option = datasets.pairs_option(dataset)
    advice = f"add --set {option}" if option else f"{dataset} has none; take another method or data set"
    raise OptionError(f"{method} reads pairs of clips, which this manifest of {dataset} has not: {advice}.")


def stream_names(streams: Sequence[str], layers: Sequence[str], backbone: str) -> list[str]:
    """The streams that a call asks for: by name, as layers of a backbone, or else the default."""
    return [*streams, *(f"{backbone}/{layer}" for layer in layers)] or ["i3d-rgb/mixed4a"]


def clip_rows(
    manifest: Path | None,
    dataset: str | None,
    root: tuple[Path, ...] | None,
    sets: tuple[str, ...],
    allow_absolute: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The rows to extract or to fit on, and the settings that their dataset asks for."""
    if (manifest is None) == (dataset is None):
        raise OptionError("Say which clips: either --manifest clips.csv or --dataset NAME (see `kdcache datasets`).")
    if manifest is not None:
        if sets:
            raise OptionError("--set belongs to --dataset; a manifest has no options.")
        if root is None and not allow_absolute:
            raise OptionError(f"Say where the sources are: {_where_sources_are(manifest)}.")
        return manifest, {}
    assert dataset is not None
    if allow_absolute:
        raise OptionError("--allow-absolute is for --manifest: a data set's sources are relative to its root.")
    return dataset_rows(dataset, root or (), sets), datasets.settings(dataset)


def _where_sources_are(manifest: Path) -> str:
    """The option that says so, by the first source of a manifest."""
    first = _head(manifest)[1]
    if is_absolute(first):
        return f"{first} in {manifest} is an absolute path, which --allow-absolute takes"
    return "--root FOLDER, or set KDCACHE_DATA"


def _head(manifest: Path) -> tuple[list[str], str]:
    """A manifest's columns and its first source, without reading it whole; ``ManifestError`` where it is no table."""
    import csv

    try:
        with manifest.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns, first = list(reader.fieldnames or ()), next(reader, {})
    except (UnicodeDecodeError, csv.Error):
        columns, first = [], {}
    if not columns:
        from kdcache.manifest import read_manifest  # brings pandas

        rows = read_manifest(manifest, allow_absolute=True)  # which says what is wrong
        return list(rows.columns), next(iter(rows["source"]), "")
    return columns, first.get("source") or ""


def dataset_rows(dataset: str, root: tuple[Path, ...], sets: tuple[str, ...]) -> Any:
    """The manifest of a data set, which lies below one root."""
    if not root:
        layout = datasets.layout(dataset)
        raise OptionError(f"Say where {dataset} lies: --root FOLDER, or set KDCACHE_DATA. Expected layout:\n{layout}")
    if len(root) > 1:
        raise OptionError(f"{dataset} lies below one root, and {len(root)} were given: give --root once.")
    return datasets.manifest_for(dataset, root[0], **pairs(sets, "--set"))


def _part(text: str | None) -> tuple[int, int]:
    number, slash, parts = (text or "1/1").partition("/")
    if not (slash and number.isdigit() and parts.isdigit()):
        raise OptionError(f"--part {text}: write I/N, such as 2/8.")
    return int(number), int(parts)


@click.command("manifest", cls=ExplainedCommand, explain=of_dataset)
@click.argument("dataset")
@root_option
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Option of the dataset, such as tau=2; repeatable."
)
@out_option(former=["--output"], required=True, metavar="FILE", help="CSV to write; - is stdout.")
def make_manifest(dataset: str, root: Path | None, sets: tuple[str, ...], out: str) -> None:
    """Write the manifest of a dataset, to look at or to change before extracting it.

    `kdcache manifest DATASET --help` lists the dataset's options.

    \b
    Example:
      kdcache manifest folder --root videos/ --set observe=0.4 -o clips.csv
    """
    from kdcache.manifest import manifest_text, write_manifest

    rows = dataset_rows(dataset, () if root is None else (root,), sets)
    if (note := without_splits(rows)) is not None:
        logger.warning("%s", note)
    if out == STDOUT:
        click.echo(manifest_text(rows, dataset), nl=False)
        return
    write_manifest(rows, out)
    click.echo(f"{out}: {len(rows)} clips of {rows['source'].nunique()} sources")
