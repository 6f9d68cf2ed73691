"""Comparisons: every row of a paper's table, or of a grid, over several seeds, tuned alike, with tests and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.data.prepare import absolute
from kdcache.engine.log import say
from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.report import ablation as pictures
from kdcache.runs.ablation import results, tuning
from kdcache.runs.ablation.pool import Job, run_jobs
from kdcache.runs.ablation.replicates import Repeat, Splits, choose_splits, in_words, run_folder
from kdcache.runs.ablation.rows import Options, Plan, parse_grid, parse_row, plan
from kdcache.runs.run import Run
from kdcache.store import Cache

__all__ = ["Ablation", "ablate", "parse_grid", "parse_row"]

STAGES = "stages"  # trained teachers that runs share


@dataclass(frozen=True)
class Ablation:
    """A finished comparison; printing it shows its tables.

    Attributes:
        path: folder with ``table.md``, ``results.csv``, ``tests.csv``, the pictures, ``ablation.json`` (the call),
            with tune ``tuning.csv``, and the runs: ``<row>/seed-<n>``, or with splits ``<row>/<column>/seed-<n>``.
        results: ``row``, ``split_column``, ``seed``, ``weights`` (best, last), ``epoch``, ``split``, ``metric``,
            ``value``.
        tests: each other row against one, paired over splits and seeds, by the metric that chooses epochs.
        tuning: ``row``, ``split_column``, ``trial``, the settings, ``score`` on validation clips, ``chosen``,
            ``problem``; or empty.
        text: the tables in Markdown.
    """

    path: Path
    results: pd.DataFrame
    tests: pd.DataFrame
    tuning: pd.DataFrame
    text: str

    def __str__(self) -> str:
        return self.text


def ablate(
    method: str,
    table: str | None = None,
    shards: str | Path = "out",
    seeds: int = 5,
    out: str | Path | None = None,
    *,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    preset: str | None = None,
    tune: int | None = None,
    tune_seeds: int = 1,
    against: str | None = None,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    device: str = "auto",
    precision: str = "auto",
    stream: str | None = None,
    **options: Any,
) -> Ablation:
    """Train every row with every seed and compare them; what has been trained before is not trained again.

    Numbers that count are those of test clips (of validation clips where there are no others) at the epoch that was
    best on validation clips; those of the last epoch stand beside them.

    Args:
        method: name in ``kdcache.methods.METHODS``.
        table: one of the paper's tables in ``kdcache/presets/<method>.toml``.
        shards: folder of the cache.
        seeds: how many; 0, 1, 2 …
        out: folder of the comparison; default ``ablations/<method>`` or ``ablations/<method>-<table>``. The same call
            goes on where it was.
        rows: instead of a table: name → options of ``train``.
        grid: option → values; every row is run with each combination.
        preset: the paper's settings for a dataset, below those of ``rows``.
        tune: how many trials of learning rate and length each row gets on validation clips before its final runs: see
            ``kdcache.runs.ablation.tuning``. 0: every row keeps its own. None: 8, where there is something to tune and
            clips to tune it on.
        tune_seeds: trainings a trial, of which the mean score counts.
        against: the row that the others are tested against; default the first.
        splits: manifest columns that say which clips train, validate and test, or patterns (``split_*``) of their
            names: every row is run with every seed on each of them, and tuned on each of them by itself, for a test
            clip of one may be a validation clip of another. None: ``split``, or what the rows' options say.
        workers: processes; each gets an equal share of the cores. The number of threads changes the last bits.
        device: as for ``train``.
        precision: as for ``train``.
        stream: as for ``train``.
        options: for all rows, on top of theirs.

    Raises:
        OptionError: unknown names or options, rows that ``tune`` would make alike, nothing to tune on, or a run that
            failed.
        KdcacheError: a worker process died.
        KeyboardInterrupt, SystemExit: interrupted; the same call goes on.
    """
    for name, value, least in (("seeds", seeds, 1), ("tune", tune or 0, 0), ("tune_seeds", tune_seeds, 1)):
        if value < least:
            raise OptionError(f"{name}={value}: give {least} or more.")
    if workers < 1 or seeds > tuning.SEED:
        raise OptionError(f"workers={workers}, seeds={seeds}: give at least one worker, and up to {tuning.SEED} seeds.")
    wanted = plan(method, table, rows or {}, grid or {}, preset, options)
    if splits is not None and any("split" in row.options for row in wanted.runnable):
        raise OptionError("split and splits both say which clips train: give one of them.")
    base = wanted.row(against) if against is not None else wanted.runnable[0]
    folder = Path(out) if out is not None else Path("ablations") / "-".join([method, *([table] if table else [])])
    common = {"method": method, "shards": absolute(shards), "device": device, "precision": precision, "stream": stream}

    columns: Splits = [None] if splits is None else choose_splits(splits, Cache(absolute(shards)).clips)
    repeats = [Repeat(column, seed) for column in columns for seed in range(seeds)]
    if tune is None:
        tune = tuning.automatic(wanted, common, say, columns)
    chosen: dict[tuple[str, str], Options] = {}
    tuned = pd.DataFrame()
    if tune:
        if table is None:
            tuning.refuse_tuned(wanted)
        tuned = _tune(wanted, tune, folder, common, tune_seeds, workers, columns)
        best = tuned[tuned["chosen"]].to_dict("records")
        chosen = {(row["row"], row["split_column"]): json.loads(row["settings"]) for row in best}
    jobs = [
        Job(
            f"{row.name}, {repeat}",
            run_folder(folder, row.slug, repeat),
            {
                **common,
                **row.options,
                **chosen.get((row.name, tuning.split_column(row, column)), {}),
                **repeat.options,
            },
        )
        for column in columns  # one after the other: what is in memory is of one split
        for row in wanted.runnable
        for repeat in repeats
        if repeat.split == column
    ]
    for label, problem in _run(jobs, workers, folder, "runs").items():
        raise OptionError(f"{label} failed, so there is nothing to compare yet: {problem}")
    arguments: dict[str, Any] = {
        "table": table,
        "preset": preset,
        "seeds": seeds,
        "tune": tune,
        "tune_seeds": tune_seeds,
    }
    if splits is not None:
        arguments["splits"] = columns
    _write(folder / "ablation.json", json.dumps({**common, **arguments, "rows": _described(jobs)}, indent=1) + "\n")
    return _conclude(wanted, folder, repeats, base.name, tuned)


def _tune(
    wanted: Plan, count: int, folder: Path, common: Mapping[str, Any], seeds: int, workers: int, columns: Splits
) -> pd.DataFrame:
    """Train all trials and mark the best of each row on each split; what is read of them is ``tuning.score`` alone."""
    trials = tuning.trials(wanted, count, columns)
    jobs = [trial.jobs(folder, common, seeds) for trial in trials]
    problems = _run([job for each in jobs for job in each], workers, folder, "trials", _score)
    found: list[dict[str, Any]] = []
    for trial, its in zip(trials, jobs, strict=True):
        failed = [problems[job.label] for job in its if job.label in problems]
        options = trial.options(wanted.method)
        found.append(
            {
                "row": trial.row.name,
                "split_column": tuning.split_column(trial.row, trial.split),
                "trial": trial.number,
                "lr": options.lr,
                "epochs": options.epochs,
                "settings": json.dumps(trial.settings),
                "score": float("nan") if failed else sum(_score(job) for job in its) / seeds,
                "problem": "; ".join(failed),
            }
        )
    table = pd.DataFrame(found)
    table["chosen"] = False
    for (row, column), part in table.groupby(["row", "split_column"], sort=False):
        if part["score"].isna().all():
            on = f" on {column}" if len(columns) > 1 else ""
            raise OptionError(f"{row}{on}: every trial failed, the first with: {part['problem'].iloc[0]}")
        number = tuning.best(dict(zip(part["trial"], part["score"], strict=True)))
        table.loc[part.index[part["trial"] == number], "chosen"] = True
    _write(folder / "tuning.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def _score(job: Job) -> float:
    """What a trained trial is worth."""
    run = Run(job.folder)
    return tuning.score(run.metrics, run.target, results.summary(run)["select"])


def _run(
    jobs: Sequence[Job], workers: int, folder: Path, what: str, check: Callable[[Job], object] | None = None
) -> dict[str, str]:
    """Run jobs with a bar that counts them; label → what went wrong. ``check`` is called for each that went well."""
    from tqdm import tqdm

    problems: dict[str, str] = {}
    with tqdm(total=len(jobs), desc=what, unit="run", disable=None) as bar:

        def listen(job: Job, problem: str) -> None:
            bar.update()
            bar.set_postfix_str(job.label)
            if problem:
                problems[job.label] = problem
                say(f"{job.label} failed: {problem}")
            elif check is not None:
                check(job)

        run_jobs(jobs, workers, folder / STAGES, listen, say)
    return problems


def _conclude(wanted: Plan, folder: Path, repeats: Sequence[Repeat], against: str, tuned: pd.DataFrame) -> Ablation:
    """Write numbers, tables and pictures."""
    first = Run(run_folder(folder, wanted.row(against).slug, repeats[0]))
    metric = str(results.summary(first)["select"])
    found = results.collect(wanted, folder, repeats)
    splits, seeds = ({getattr(r, name) for r in repeats} for name in ("split", "seed"))
    split, weights = results.judged_on(found)
    tests = results.tests(wanted, found, against, metric, split)
    lines = [f"# {wanted.method}" + (f": {wanted.caption}" if wanted.caption else ""), ""]
    shown = results.columns(wanted, found, first.target)
    for each in [w for w in results.WEIGHTS if (found["weights"] == w).any()]:
        lines += [f"{split.capitalize()}, {results.WEIGHTS[each]}, {in_words(repeats)}", ""]
        lines += [*results.table(wanted, found, shown, each, split), ""]
        if len(splits) > 1 < len(seeds):
            lines += [f"The same, means over seeds first: mean ± std over {len(splits)} splits", ""]
            lines += [*results.table_over_splits(wanted, found, shown, each, split), ""]
        if len(tests):
            over = "splits and seeds" if len(splits) > 1 else "seeds"
            lines += [f"{metric} against {against}, paired over {over}, {results.WEIGHTS[each]}", ""]
            lines += [*results.tests_table(tests, each), ""]
    if len(splits) > 1 and len(tests):
        lines += ["Splits share clips, so their runs are not independent: p is smaller than it should be.", ""]
    if split == "validation":
        lines += ["The cache has no test clips: the clips that chose the epochs are those of the tables.", ""]
    elif weights == "last":
        lines += ["The cache has no validation clips: there is no best epoch to choose, the last one counts.", ""]
    if len(tuned):
        lines += [*_tuning_lines(tuned, metric), ""]
    elif len(wanted.runnable) > 1:
        lines += [
            "Not tuned: each row kept its own learning rate and length, which may suit one better than another.",
            "",
        ]
    text = "\n".join(lines)
    _write(folder / "results.csv", found.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    _write(folder / "tests.csv", tests.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    _write(folder / "table.md", text)
    pictures.draw(wanted, folder, repeats, found, against, metric, split, weights)
    return Ablation(folder, found, tests, tuned, text)


def _tuning_lines(tuned: pd.DataFrame, metric: str) -> list[str]:
    """Markdown: what each row chose."""
    count, by = tuned["trial"].nunique(), ["row"]
    if len(tuned[["row", "split_column"]].drop_duplicates()) > tuned["row"].nunique():
        by.append("split_column")
    lines = [f"Chosen of {count} trials by {metric} on validation clips" + " of each split" * (len(by) - 1), ""]
    lines += [f"| {' | '.join(by)} | trial | lr | epochs | score | its own settings |", "| --- " * (len(by) + 5) + "|"]
    for names, part in tuned.groupby(by, sort=False):
        best, own = part[part["chosen"]].iloc[0], part[part["trial"] == 0].iloc[0]
        shown = " | ".join(str(best[name]) for name in ("trial", "lr", "epochs"))
        lines.append(f"| {' | '.join(map(str, names))} | {shown} | {best['score']:.1f} | {own['score']:.1f} |")
    return lines


def _described(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Each run's folder and full arguments."""
    return [{"label": job.label, "folder": str(job.folder), "arguments": job.arguments} for job in jobs]


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)
