"""The command that writes, checks and measures files for the EPIC-KITCHENS challenges."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cli.common import given
from kdcache.errors import OptionError
from kdcache.log import quiet

if TYPE_CHECKING:
    from kdcache.runs.submit import Submission


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write, .zip or .json.")
@click.option(
    "--annotations",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the official CSV files.",
)
@click.option("--dataset", type=click.Choice(["epic55", "epic100"]), help="[default: the one whose files are there]")
@click.option("--split", type=click.Choice(["test", "validation"]), help="Segments to write.  [default: test]")
@click.option("--tau", "tau_s", type=float, help="Anticipation time in seconds.  [default: 1]")
@click.option("--sls", metavar="PT-TL-TD", help="Supervision levels, such as 1-3-3; EPIC-100 wants them declared.")
@click.option("--which", type=click.Choice(["last", "best"]), help="Which weights of the runs.  [default: last]")
@click.option(
    "--shards",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Cache that holds the segments.  [default: the runs']",
)
@click.option(
    "--lag",
    "lag_s",
    type=click.FloatRange(0),
    help="Seconds from the features' last step to the end of each clip, where their import does not say it.",
)
@click.option("--fill", is_flag=True, default=None, help="Scores of 0 for segments that the cache lacks.")
@click.option(
    "--check",
    "checked",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check this file instead: one sentence for each problem, and exit status 1 if there is any.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written and measured as JSON.")
def submit(runs: tuple[Path, ...], checked: Path | None, as_json: bool, **options: Any) -> None:
    """Write a file for the EPIC-KITCHENS action anticipation challenge, and print the official numbers of the runs.

    RUNS are of actions (target label), or of verbs and of nouns; several of one target are averaged. Numbers are taken
    of held-out segments with labels: the nine of EPIC-100, or the twelve of EPIC-55. Without -o only these are printed.

    \b
    Example:
      kdcache submit runs/rulstm-0 --annotations annotations/ --sls 1-3-3 -o test.zip
      kdcache submit --check test.zip --annotations annotations/
    """
    from kdcache.runs.submit import check
    from kdcache.runs.submit import submit as write

    if checked is not None:
        others = [
            name for name, value in options.items() if value is not None and name not in ("annotations", "dataset")
        ]
        if runs or others:
            raise OptionError("--check reads a file that is there: leave out RUNS and what belongs to writing one.")
        sentences, found = check(checked, options["annotations"], options["dataset"])
        for sentence in sentences:
            click.echo(sentence, err=True)
        if sentences:
            sys.exit(1)
    else:
        with quiet():  # how the runs were trained is not of interest here; warnings are
            found = write(list(runs), **given(options))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, default=str))
        return
    for line in lines(found):
        click.echo(line)


def lines(found: Submission) -> list[str]:
    """What was written and measured, as a person reads it."""
    made = [
        f"{found.path}: {name}, {count} segments" + (f", {found.zeros[name]} of zeros" if found.zeros.get(name) else "")
        for name, count in found.segments.items()
    ]
    if not found.numbers:
        return made or ["The runs hold out no labelled segment of the annotations: nothing was measured."]
    lacking = f"; {found.lacking} of the official ones are not among them" if found.lacking else ""
    made.append(f"{found.edition}, {found.measured_on} labelled segments{lacking}:")
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    if found.edition == "epic100":
        rows, columns = ("overall", "unseen", "tail"), ("verb", "noun", "action")
        cells = {(r, c): found.numbers[f"{r}_{c}_mt5r"] for r in rows for c in columns}
        made.append("mean top-5 recall, %")
    else:
        rows, columns = ("verb", "noun", "action"), ("top1", "top5", "precision", "recall")
        cells = {(r, c): found.numbers[f"{r}_{c}"] for r in rows for c in columns}
        made.append("precision and recall of many-shot classes, %")
    made.append(" " * 8 + "".join(f"{column:>11}" for column in columns))
    return made + [f"{row:8}" + "".join(f"{cells[row, column]:11.2f}" for column in columns) for row in rows]
