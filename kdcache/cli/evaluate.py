"""The command that evaluates finished runs."""

from __future__ import annotations

from pathlib import Path

import click

from kdcache.cli.common import method_option
from kdcache.cli.printing import report, report_options


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", help="validation, test or, for one run, train.  [default: all that was held out]")
@method_option
@report_options
def evaluate(runs: tuple[Path, ...], split: str | None, as_json: bool, out: str) -> None:
    """Evaluate a finished run from its checkpoint; several runs are fused by the mean of their probabilities.

    The metrics are always printed as JSON.

    \b
    Example:
      kdcache evaluate runs/anticipation-0
      kdcache evaluate runs/rgb runs/flow
    """
    import kdcache
    from kdcache.runs.fuse import fuse

    metrics = kdcache.evaluate(runs[0], split) if len(runs) == 1 else fuse(runs, split)
    report(metrics, True, out)
