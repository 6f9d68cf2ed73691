"""``kdcache predict``: what a run says of a source."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.common import PlacePath, by_backbone, given, method_option, out_option, source_cache_options
from kdcache.cli.printing import STDOUT, json_option, report, write_text
from kdcache.log import logger, quiet

if TYPE_CHECKING:
    from kdcache.runs.online import Prediction


@click.command()
@click.argument("paths", nargs=-1, metavar="RUN SOURCE", type=PlacePath())
@source_cache_options
@click.option(
    "--skeleton", type=click.Path(exists=True, path_type=Path), help="The clip's skeleton file, where a run reads both."
)
@click.option("--start", type=float, help="Second at which the clip starts.  [default: the source's start]")
@click.option("--stop", type=float, help="Second before which it stops.  [default: the source's end]")
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Classes to print.")
@click.option("--which", type=click.Choice(["last", "best"]), help="Which weights of the run.  [default: last]")
@click.option(
    "--weights", multiple=True, metavar="[BACKBONE=]FILE|random:SEED", help="Default: found by the run's digest."
)
@click.option("--fps", type=float, help="Frame rate of a folder or tar of images.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: the run's]")
@out_option(
    former=["--csv"],
    type=click.Path(dir_okay=False, allow_dash=True),
    help="CSV file for all probabilities (with --json, JSON); - prints them instead of the likeliest.",
)
@json_option
@method_option
def predict(
    paths: tuple[Path | str, ...],
    top: int,
    weights: tuple[str, ...],
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the likeliest classes of SOURCE, from what the run's network reads and no more.

    SOURCE is what the run's clips were cut from: a video, a folder or tar of images, or a skeleton file, or its
    address (s3://…, https://…). A run of early prints a line for each observation level, from what was seen by then, as
    SOURCE unfolds; any other run prints one.

    \b
    Example:
      kdcache predict runs/early-0 video.mp4
      kdcache predict runs/anticipation-0 video.mp4 --start 11 --stop 12.07 --top 5
      kdcache predict runs/early-0 jhmdb_joints_split1.npz --start 1.3 --stop 2.6 -o all.csv
    """
    import kdcache
    from kdcache.runs.online.recipes import recipes_of
    from kdcache.runs.run import Run

    run, source = _run_and_source(paths)
    opened = Run(run)
    chosen: Any = None
    if weights:  # of a run that reads no features, the text itself, which is then refused
        chosen = by_backbone(weights, recipes_of(opened)) or weights[0]
    out = STDOUT if as_json and out is None else out
    rows = []
    with quiet():  # how the run was trained is not of interest here; warnings are
        for prediction in kdcache.predict(opened, source, weights=chosen, **given(options)):
            rows.append(prediction)
            if out != STDOUT:
                click.echo(prediction.line(top))
    if as_json:
        report(rows, as_json, out or STDOUT)
    elif out is not None:
        write_text(_table(rows), out)


def _run_and_source(paths: tuple[Path | str, ...]) -> tuple[Path, Path | str]:
    """The two arguments; version 0.1 had the method before them, which is taken for one release."""
    if len(paths) == 3 and str(paths[0]) == "early":
        logger.warning("predict early RUN SOURCE is predict RUN SOURCE now; the old form goes with the next release")
        paths = paths[1:]
    if len(paths) != 2:
        raise click.UsageError("Give a run's folder and a source: kdcache predict RUN SOURCE.")
    return Path(paths[0]), paths[1]


def _table(rows: list[Prediction]) -> str:
    """CSV: ``observed`` in per cent, ``seconds``, and a column a class, named by the manifest's label."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["observed", "seconds", *rows[0].classes])
    for row in rows:
        table.writerow([row.observed, f"{row.seconds:.6g}", *(f"{p:.6g}" for p in row.probabilities)])
    return text.getvalue().rstrip("\n")
