"""``kdcache methods`` and ``kdcache backbones``: what there is."""

from __future__ import annotations

from typing import Any

import click

from kdcache.cli.common import given
from kdcache.cli.printing import report, report_options


@click.command("methods")
@click.argument("name", required=False)
@report_options
def list_methods(name: str | None, as_json: bool, out: str) -> None:
    """List the methods that train takes; with NAME its inputs, tables, presets and options.

    \b
    Example:
      kdcache methods
      kdcache methods early
    """
    from kdcache.runs import catalog

    report(catalog.methods() if name is None else catalog.describe_method(name), as_json, out)


@click.command("backbones")
@click.argument("name", required=False)
@click.option("--frames", type=int, help="Frames of a segment.  [default: the backbone's]")
@click.option("--size", type=int, help="Side in pixels of the input.  [default: the backbone's]")
@click.option("--levels", type=int, help="Observation levels.  [default: none; for skeletons 10]")
@click.option("--views", metavar="A,B,…", help="Crops and flips side by side.  [default: centre]")
@report_options
def list_backbones(name: str | None, as_json: bool, out: str, views: str | None, **settings: Any) -> None:
    """List the backbones; with NAME its layers: axes, shapes and what a clip takes in a cache, in float16.

    \b
    Example:
      kdcache backbones
      kdcache backbones tsm --levels 10 --views centre,centre-flip
      kdcache backbones torchvision:s3d
    """
    from kdcache.backbones import allow
    from kdcache.streams import catalog
    from kdcache.streams.settings import StreamSettings

    chosen = given(settings) | ({} if views is None else {"views": tuple(views.split(","))})
    if name is None:
        if chosen:
            raise click.UsageError(f"--{next(iter(chosen))} is for one backbone: name it.")
        report(catalog.describe_backbones(), as_json, out)
        return
    report(catalog.describe_backbone(allow(name), StreamSettings.of(chosen)), as_json, out)
