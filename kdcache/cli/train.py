"""Commands of the second stage: train, evaluate; and the demo of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import given, shards_option


@click.command()
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

    run = kdcache.train(method, shards=shards, **given(options), **parse_set(method, sets))
    click.echo(run)


@click.command()
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


@click.command()
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
