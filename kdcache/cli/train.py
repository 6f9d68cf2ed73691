"""Commands of the second stage: train; and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import folder_option, given, method_option
from kdcache.cli.explained import ExplainedCommand, of_method
from kdcache.cli.printing import json_option, report_training
from kdcache.errors import OptionError


@click.command(cls=ExplainedCommand, explain=of_method)
@click.argument("method", required=False)
@click.option("--shards", type=click.Path(path_type=Path), help="The cache that extract wrote.  [default: out]")
@folder_option(help="The run's folder.  [default: runs/METHOD-N]")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Repeat a run's config.toml."
)
@click.option("--seed", type=int, help="Seed of initialisation, order and dropout.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="[default: auto]")
@click.option("--stream", help="Which cached features to train on, if there are several.")
@click.option("--preset", help="The paper's settings for a dataset, such as epic or ucf101.")
@click.option("--row", metavar="TABLE/ROW", help="One row of a paper's table, such as 'table2/TS-LSTM*'.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Option of the method; repeatable.")
@method_option
@json_option
def train(
    method: str | None,
    shards: Path | None,
    config: Path | None,
    preset: str | None,
    row: str | None,
    sets: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train a head on cached features by METHOD, and print how good it is.

    METHOD is one of `kdcache methods`, or your own: FILE.py or package.module. `kdcache train METHOD --help` lists its
    options with their defaults and the papers' values.

    \b
    Example:
      kdcache train anticipation --shards out/
      kdcache train anticipation --shards out/ --set loss_d=none --set head=light --seed 1
      kdcache train early --shards out/ --preset ntu
      kdcache train early --shards out/ --row table2/RankLSTM
      kdcache train recognition --shards out/
      kdcache train my_method.py --shards out/
      kdcache train --config runs/anticipation-0/config.toml --seed 1
    """
    from kdcache.methods import load_method
    from kdcache.runs import presets
    from kdcache.runs.config import check_names, load_config, parse_set

    if (method is None) == (config is None):
        raise OptionError("Say what to train: a METHOD such as anticipation, or --config FILE of an earlier run.")
    chosen: dict[str, Any] = load_config(config) if config else {"shards": "out"}
    if method is not None:
        chosen["method"] = load_method(method)
    chosen |= presets.training(chosen["method"], preset) if preset else {}
    if row:
        found = presets.row(chosen["method"], row)
        if found.method != chosen["method"] and (config or preset):
            raise OptionError(
                f"--row {row} is trained by {found.method}, whose options are all in the row: leave --config and "
                f"--preset of {chosen['method']} out."
            )
        chosen |= found.options | {"method": found.method}
    chosen |= given({"shards": shards, **options})
    check_names(chosen["method"], sets)
    chosen |= parse_set(chosen["method"], sets)
    from kdcache.runs.train import train as run_training  # torch, after all that can be refused without it

    report_training(run_training(**chosen), as_json)


@click.command()
@folder_option(default="demo", show_default=True, help="Folder for everything.")
@click.option("--seed", default=0, show_default=True, help="Seed of the data set and of training.")
def demo(out: Path, seed: int) -> None:
    """Render a small data set, extract its streams, train with and without distillation: some minutes, no network.

    \b
    Example:
      kdcache demo
    """
    from kdcache.demo import run_demo

    click.echo(run_demo(out, seed=seed))
