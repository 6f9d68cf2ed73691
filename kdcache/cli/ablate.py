"""The command that compares: every row of a table or grid, with every seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import SOME_FAILED, cluster_options, folder_option, given
from kdcache.cli.explained import ExplainedCommand, of_tables
from kdcache.cli.printing import json_option, report


def _together(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value in ("auto", "off"):
        return value
    if not (value.isascii() and value.isdecimal()) or int(value) < 1:
        raise click.BadParameter(f"{value!r} is no number of runs; give one from 1 on, auto or off.")
    return int(value)


def _draws(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value == "each":
        return value
    if not (value.isascii() and value.isdecimal()) or int(value) < 1:
        raise click.BadParameter(f"{value!r} is no number of draws; give one from 1 on, or each.")
    return int(value)


@click.command(cls=ExplainedCommand, explain=of_tables)
@click.argument("method")
@click.argument("table", required=False)
@click.option(
    "--shards",
    default="out",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The cache; caches/draw-{draw}: one for each draw.",
)
@click.option("--seeds", default=5, show_default=True, help="How many runs of each row, in each draw.")
@click.option("--draws", type=int, help="How many draws of labels, validation groups or caches.  [default: none]")
@folder_option(help="Folder for runs and tables.  [default: ablations/…]")
@click.option("--only", multiple=True, metavar="ROW", help="This row of the table alone; repeatable.")
@click.option("--row", "rows", multiple=True, metavar="NAME:KEY=VALUE,…", help="A row of your own; repeatable.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE[,VALUE…]", help="For all rows; several values make a grid."
)
@click.option("--preset", help="The paper's settings for a dataset, below those of the rows.")
@click.option(
    "--tune",
    type=int,
    help="Trials of learning rate, length and what its objective adds that each row gets; 0: none.  "
    "[default: 16 if possible]",
)
@click.option("--tune-seeds", default=1, show_default=True, help="Trainings a trial.")
@click.option(
    "--tune-draws",
    default="each",
    show_default=True,
    metavar="N|each",
    callback=_draws,
    help="Draws on which each trial is trained, for one choice; each: a choice for each draw.",
)
@click.option("--min-steps", default=500, show_default=True, help="Optimiser steps that tuned rows take at least.")
@click.option("--widen", default=2, show_default=True, help="How often what is searched may be widened on each side.")
@click.option(
    "--retrain/--no-retrain",
    default=None,
    help="Trials hold training clips out; final runs train on all of them.  [default: as the paper of the table]",
)
@click.option("--tune-validation", default=0.2, show_default=True, help="Share that --retrain holds out for trials.")
@click.option("--against", help="Row that the others are tested against.  [default: the first]")
@click.option(
    "--split-columns",
    metavar="COLUMN,…",
    help="Manifest columns, split_*, or subject=* (each subject out in turn): every row on each.  [default: split]",
)
@click.option("--splits", hidden=True, help="The name of --split-columns in version 0.1.")
@click.option(
    "--source", type=click.Path(path_type=Path), help="Video or skeleton file on which answers of each row are timed."
)
@cluster_options
@click.option(
    "--together",
    default="auto",
    metavar="N|auto|off",
    callback=_together,
    help="Runs that differ in seed and numbers alone train in one pass, so many at most.  "
    "[default: auto: 50 on a GPU, off on a CPU]",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="[default: auto]")
@click.option("--stream", help="Which cached features to train on, if there are several.")
@json_option
def ablate(
    method: str,
    table: str | None,
    rows: tuple[str, ...],
    sets: tuple[str, ...],
    split_columns: str | None,
    splits: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run every row of a paper's TABLE, or rows of your own, with several seeds and splits, and compare them.

    `kdcache ablate METHOD --help` lists the method's tables and rows, `kdcache train METHOD --help` its options.

    Settings and epoch are selected on validation clips alone; without any, the last epoch is shown. The tables also say
    how many optimiser steps each row took. What has been trained before is not trained again. A row that fails is named
    and left out; the exit status is then 3. docs/ablations.md has the protocol.

    \b
    Example:
      kdcache ablate anticipation table3 --shards out/ --seeds 5
      kdcache ablate early table2 --only KNN --only 'TS-LSTM*' --seeds 3
      kdcache ablate early --shards out/ --set alpha=0,0.5 --set beta=0,1 --tune 8 --workers 2
      kdcache ablate early --row "S:alpha=0,beta=0" --row "both:" --set label_fraction=0.1 --draws 5
      kdcache ablate early table2 --shards 'caches/draw-{draw}' --draws 5 --seeds 3 --retrain
      kdcache ablate early table1-sysu --seeds 3 --split-columns 'split_*'
      kdcache ablate early --set alpha=0,0.5 --seeds 3 --split-columns 'subject=*'
    """
    from kdcache.methods import load_method
    from kdcache.runs import presets
    from kdcache.runs.ablation.rows import parse_grid, parse_rows
    from kdcache.runs.config import check_names

    method = load_method(method)
    check_names(method, sets)
    if table is not None:
        presets.table(method, table)
    common, grid = parse_grid(method, sets)
    named = parse_rows(method, rows)
    for name, text in (("split_columns", split_columns), ("splits", splits)):
        if text is not None:
            options[name] = [column.strip() for column in text.split(",")]
    from kdcache.report.ablation import ablate as compare  # torch, after all that can be refused without it

    result = compare(method, table, rows=named, grid=grid, **given(options) | common)
    report(result, as_json)
    if not as_json:
        click.echo(f"{result.path}/")
    if result.failed:
        sys.exit(SOME_FAILED)
