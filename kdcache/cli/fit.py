"""``kdcache fit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import (
    SOME_FAILED,
    allow_absolute_option,
    folder_option,
    given,
    number_of_workers,
    roots_option,
)
from kdcache.cli.explained import ExplainedCommand, of_fit
from kdcache.cli.extract import clip_rows
from kdcache.cli.printing import json_option, report_training
from kdcache.errors import OptionError


@click.command(cls=ExplainedCommand, explain=of_fit)
@click.argument("backbone", required=False)
@click.option("--manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV of clips.")
@click.option("--dataset", help="Make the manifest from a dataset's annotations; see `kdcache datasets`.")
@roots_option
@allow_absolute_option
@folder_option(help="The fit's folder.  [default: fits/BACKBONE-N]")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Repeat a fit's config.toml."
)
@click.option("--seed", type=int, help="Seed of first weights, order and augmentation.  [default: 0]")
@click.option(
    "--split-column",
    metavar="COLUMN",
    help="Column of the manifest that says what trains, or subject=S2: these clips test.  [default: split]",
)
@click.option("--split", hidden=True)
@click.option(
    "--cross-fit",
    type=click.IntRange(2),
    metavar="K",
    help="K + 1 fits: on all clips, and without each of K parts, which `extract` computes with the fit without them.",
)
@click.option(
    "--workers",
    metavar="N|auto",
    callback=number_of_workers,
    help="Threads that decode and augment the clips of a batch.  [default: auto: one a core beside a GPU, 1 on a CPU]",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="[default: auto]")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the fit, or of the dataset (dataset.KEY where both have it); repeatable.",
)
@json_option
def fit(
    backbone: str | None,
    manifest: Path | None,
    dataset: str | None,
    root: tuple[Path, ...] | None,
    allow_absolute: bool,
    config: Path | None,
    sets: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train BACKBONE on your own clips, where nobody publishes weights.

    Writes a weights file that `kdcache extract --weights BACKBONE=FILE` takes (with --cross-fit a folder of them). Only
    clips of split train are trained on; validation clips choose the epoch, test clips are looked at once, at the end.
    The same command goes on after an interruption. Exit status 3 says that some clips failed: the fit's failures.csv
    lists them. `kdcache fit BACKBONE --help` lists the options of a fit with the backbone's defaults.

    \b
    Example:
      kdcache fit vacnn --dataset ntu --root /data/ntu
      kdcache fit vacnn --dataset msraction3d --root skeletons/ --set lr=0.001 --precision bf16
      kdcache fit tsm --manifest clips.csv --root videos/ --set label_fraction=0.1
      kdcache fit vacnn-small --dataset msraction3d --root skeletons/ --cross-fit 4
    """
    from kdcache.backbones import allow, input_spec
    from kdcache.datasets.registry import dataset_module

    if dataset is not None:
        dataset_module(dataset)
    if backbone is not None:
        input_spec(allow(backbone))  # unknown names are refused before torch is imported
    import kdcache
    from kdcache.methods.recognition_options import RecognitionOptions
    from kdcache.runs.fit import load_config, parse_set

    own, others = parse_set(sets, dataset is not None)
    if config is not None:
        if backbone is not None or manifest is not None or dataset is not None:
            raise OptionError("--config says what is fitted on what: leave BACKBONE, --manifest and --dataset out.")
        chosen: dict[str, Any] = load_config(config)
    elif backbone is None:
        raise OptionError("Say what to fit: a BACKBONE such as vacnn, or --config FILE of an earlier fit.")
    else:
        rows, defaults = clip_rows(manifest, dataset, root, others, allow_absolute)
        protocol = {name: value for name, value in defaults.items() if hasattr(RecognitionOptions, name)}
        chosen = {"backbone": backbone, "manifest": rows} | protocol
    if allow_absolute:
        options["allow_absolute"] = True
    result = kdcache.fit(**chosen | given({"root": root, **options}) | own)
    report_training(result, as_json)
    if result.failures:
        sys.exit(SOME_FAILED)
