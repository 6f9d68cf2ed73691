"""``kdcache predict``: what a run says of a source while it unfolds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.common import by_backbone, given
from kdcache.files import atomic

if TYPE_CHECKING:
    from kdcache.runs.online import Prediction


@click.command()
@click.argument("method", type=click.Choice(["early"]))
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("source", type=click.Path(exists=True, path_type=Path))
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
@click.option("--csv", "table", type=click.Path(dir_okay=False, path_type=Path), help="Write all probabilities.")
def predict(
    run: Path,
    source: Path,
    top: int,
    weights: tuple[str, ...],
    table: Path | None,
    method: str,
    **options: Any,
) -> None:
    """Print the likeliest classes as SOURCE unfolds: a line for each observation level, from what was seen by then.

    SOURCE is what the run's clips were cut from: a video, a folder or tar of images, or a skeleton file.

    \b
    Example:
      kdcache predict early runs/early-0 video.mp4
      kdcache predict early runs/early-0 jhmdb_joints_split1.npz --start 1.3 --stop 2.6 --csv all.csv
    """
    import kdcache
    from kdcache.runs.train import Run

    opened = Run(run)
    streams = str(opened.resolved["stream"]).split(",")
    predictions = kdcache.predict(opened, source, weights=by_backbone(weights, streams), **given(options))
    rows = []
    for prediction in predictions:
        click.echo(prediction.line(top))
        rows.append(prediction)
    if table is not None:
        _write(table, rows)


def _write(path: Path, rows: list[Prediction]) -> None:
    """``observed`` in per cent, ``seconds``, and a column a class, named by the manifest's label."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["observed", "seconds", *rows[0].classes])
        for row in rows:
            table.writerow([row.observed, f"{row.seconds:.6g}", *(f"{p:.6g}" for p in row.probabilities)])
