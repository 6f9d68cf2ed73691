"""The command that says what an answer costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import method_option
from kdcache.cli.printing import report, report_options
from kdcache.log import quiet
from kdcache.text import aligned_markdown


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), help="Also time answers for this video or skeleton file.")
@click.option("--start", type=float, help="Second at which the clip starts.  [default: the source's start]")
@click.option("--stop", type=float, help="Second before which it stops.  [default: the source's end]")
@click.option("--fps", type=float, help="Frame rate of a folder or tar of images.")
@click.option("--device", help="auto, cpu, cuda or cuda:N, to be timed on.  [default: the runs']")
@click.option("--repeats", default=5, show_default=True, help="Answers of which the median time is taken.")
@method_option
@report_options
def cost(runs: tuple[Path, ...], as_json: bool, out: str, **options: Any) -> None:
    """Parameters, multiply-adds and TV-L1 fields of an answer, and with --source how long it takes.

    Of the network that answers and of the backbones below what it reads; inputs that are read in training only take no
    part. Several runs take turns in being timed.

    \b
    Example:
      kdcache cost runs/relation-0 runs/relation-two-stream --source clip.mp4
    """
    import pandas as pd

    from kdcache.report.costs import cost_table, meaning
    from kdcache.runs.cost import costs

    with quiet():  # how the runs were trained is not of interest here; warnings are
        found = [{"run": str(run), **asdict(its)} for run, its in zip(runs, costs(runs, **options), strict=True)]
    if as_json:
        report(found, as_json, out)
        return
    table = pd.DataFrame(found).assign(source=str(options["source"] or ""))
    report(aligned_markdown("\n".join([*cost_table(table, "run"), "", meaning(table)])), as_json, out)
