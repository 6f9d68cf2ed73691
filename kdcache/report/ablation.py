"""``kdcache.ablate``: compare many runs, and report what came out as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.cluster.options import cluster_of
from kdcache.errors import OptionError, ReferenceRowError
from kdcache.files import atomic
from kdcache.log import EachOnce, logger, show_log
from kdcache.methods import load_method
from kdcache.methods.contract import HELD_OUT, VALIDATION
from kdcache.metrics.early import column_title, confusion, per_class_gain, percent, ratio_metrics
from kdcache.metrics.significance import mean_std
from kdcache.report import plots
from kdcache.report.effects import units_in_words
from kdcache.report.paper_columns import paper_columns
from kdcache.report.tables import gains_of, markdown
from kdcache.runs import presets
from kdcache.runs.ablation.columns import with_streams
from kdcache.runs.ablation.conclusion import Conclusion, conclude
from kdcache.runs.ablation.description import DESCRIPTION
from kdcache.runs.ablation.jobs import pool_for
from kdcache.runs.ablation.protocol import AblationProtocol, train_rows
from kdcache.runs.ablation.replicates import Replicate, choose_columns, run_folder, shards_of
from kdcache.runs.ablation.results import UNIT, WEIGHTS, stage_summary, unit_means, values
from kdcache.runs.ablation.rows import choose_rows
from kdcache.runs.ablation.tuning import EACH, MIN_STEPS, WIDEN
from kdcache.runs.latency import check_readable
from kdcache.runs.online.answer import class_names
from kdcache.runs.prepare import absolute
from kdcache.runs.presets import TableRow
from kdcache.runs.run import Run
from kdcache.runs.session import Session
from kdcache.store import Cache, clean
from kdcache.text import aligned_markdown

CONCLUDED = ("table.md", "results.csv", "tests.csv", DESCRIPTION)
PICTURES = ("effects.png", "curve.png", "training.png", "gain.png", "confusion.png")

Scored = tuple[NDArray[np.float64], NDArray[np.int64], list[int]]


@dataclass(frozen=True)
class Ablation:
    """A finished comparison; printing it shows its tables.

    Attributes:
        path: folder with ``table.md``, ``results.csv``, ``tests.csv``, ``cost.csv``, the plots, ``ablation.json`` (the
            call and what was searched), with tuning ``tuning.csv``, and the runs: ``<row>/seed-<n>``, with split
            columns and draws ``<row>/<column>/draw-<n>/seed-<n>``.
        results: ``row``, ``split_column``, ``draw``, ``seed``, ``weights`` (best, last), ``epoch``, ``steps``,
            ``split``, ``metric``, ``value``.
        tests: each other row against one by the metric that selects epochs: see ``results.tests``.
        tuning: ``row``, ``split_column``, ``trial``, what was varied, ``score`` on validation clips, ``chosen``,
            ``problem``, ``edge``; or empty. Teachers that are tuned by themselves have rows of their own.
        text: the tables in Markdown.
        failed: name of each row that could not be trained → why; it is not compared.
    """

    path: Path
    results: pd.DataFrame
    tests: pd.DataFrame
    tuning: pd.DataFrame
    text: str
    failed: dict[str, str]

    def __str__(self) -> str:
        return aligned_markdown(self.text)

    def to_json(self) -> dict[str, Any]:
        """Its folder and its tables, as plain data."""
        return {
            "path": self.path,
            "results": self.results,
            "tests": self.tests,
            "tuning": self.tuning,
            "failed": self.failed,
        }


def ablate(
    method: str,
    table: str | None = None,
    shards: str | Path = "out",
    seeds: int = 5,
    out: str | Path | None = None,
    *,
    only: Sequence[str] = (),
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    preset: str | None = None,
    draws: int | None = None,
    tune: int | None = None,
    tune_seeds: int = 1,
    tune_draws: int | Literal["each"] = EACH,
    min_steps: int = MIN_STEPS,
    widen: int = WIDEN,
    retrain: bool | None = None,
    tune_validation: float = 0.2,
    against: str | None = None,
    split_columns: Sequence[str] | None = None,
    source: str | Path | None = None,
    workers: int | str | None = None,
    engine: str = "local",
    address: str | None = None,
    worker_cpus: float | None = None,
    worker_gpus: float | None = None,
    together: int | str = "auto",
    device: str = "auto",
    precision: str = "auto",
    stream: str | None = None,
    **options: Any,
) -> Ablation:
    """Train every row with every seed and compare them; what has been trained before is not trained again.

    Numbers that count are those of test clips (of validation clips where there are no others) at the epoch that was
    best on validation clips; those of the last epoch stand beside them. Without validation clips nothing is selected:
    there is no best epoch and no tuning. Every table says how many optimiser steps each row took. How settings are
    searched is said in ``kdcache.runs.ablation.tuning``, and all of it in ``docs/ablations.md``.

    Args:
        method: a name, or a method of one's own by its import path or file, see ``train``.
        table: one of the paper's tables in ``kdcache/presets/<method>.toml``.
        shards: folder of the cache; ``caches/draw-{draw}`` has one for each draw, such as that of a backbone fitted
            anew.
        seeds: how many; 0, 1, 2 …
        only: names of the table's rows to run; none: all of them. A later call with others, or with all, trains what is
            missing.
        out: folder of the comparison; default ``ablations/<method>`` or ``ablations/<method>-<table>``. The same call
            goes on where it was.
        rows: instead of a table: name → options of ``train``.
        grid: option → values; every row is run with each combination.
        preset: the paper's settings for a dataset, below those of ``rows``.
        draws: how many draws of what a number should not depend on; ``seeds`` runs are made in each. Draw d keeps other
            labels where a row's ``label_fraction`` is below 1 (``label_seed=d``), holds other groups out for validation
            where the manifest names none (``validation_seed=d``, unless an earlier draw has the same), and reads its
            own cache where ``shards`` says so. No two draws may be alike. None: no draws; all of it is that of draw 0.
        tune: how many trials each row gets on validation clips before its final runs, of learning rate, length and what
            its objective adds: see ``kdcache.runs.ablation.tuning``. 0: every row keeps its own. None: 16, where there
            is something to tune and clips to tune it on that are not reported.
        tune_seeds: trainings a trial on each draw, of which the mean score counts.
        tune_draws: ``"each"``: every draw is tuned by itself, so that intervals hold what another choice would change.
            A number is cheaper: so many draws take part in the trials, and what is chosen holds for all draws.
        min_steps: rows that are tuned take at least so many optimiser steps; epochs and milestones are raised to that.
        widen: how often a dimension of what is searched is widened on each side where a choice lies on its edge.
        retrain: trials hold some of the training clips out, final runs train on all of them and take the last epoch.
            Where the manifest has validation clips and no test clips, these are reported and select nothing. None:
            where the paper does, as the preset of the table or of the call says.
        tune_validation: share of the training clips that the trials then hold out, unless ``validation`` says another.
        against: the row that the others are tested against, each in its own column where a table has columns for
            several streams; default the one that the paper compares with, else the first.
        split_columns: manifest columns that say which clips train, validate and test, or patterns (``split_*``) of
            their names; or ``subject=*``, which leaves the values of any other column out one at a time: clips of that
            value test, the others train, and validation clips are held out of these. Every row is run with every seed
            on each of them, and tuned on each of them by itself, for a test clip of one may be a validation clip of
            another. None: ``split``, or what the rows' options say. (The name ``splits`` of version 0.1 still works.)
        source: video or skeleton file to answer for: the table of costs then says how long each row's first run takes.
        workers: processes; each gets an equal share of the cores. The number of threads changes the last bits.
            ``"auto"``: one a core, as far as memory allows if each holds the whole cache. Default 1; on a cluster as
            many as it has room for.
        together: how many runs that differ in seed and numbers alone train in one pass at most, which changes the last
            bits; ``off``; ``auto``: 50 on a GPU, off on a CPU.
        engine: ``local``, or ``ray``: runs are trained on a cluster whose nodes see ``shards`` and ``out`` by the same
            names.
        address: of the cluster; this and the next two are as for ``extract``.
        worker_cpus: cores, and threads, of each worker on it.
        worker_gpus: GPUs of each.
        device: as for ``train``.
        precision: as for ``train``.
        stream: as for ``train``.
        options: for all rows, on top of theirs.

    Raises:
        OptionError: unknown names or options, rows that ``tune`` would make alike, nothing to tune on, draws that
            cannot be made or are alike, or a run that failed.
        KdcacheError: a worker process died.
        KeyboardInterrupt, SystemExit: interrupted; the same call goes on.
    """
    show_log()
    cluster = cluster_of(engine, address, worker_cpus, worker_gpus, device)
    method = load_method(method)
    if "splits" in options:
        logger.warning("splits is now called split_columns; the old name will go in a later version.")
        split_columns = options.pop("splits") if split_columns is None else split_columns
    comparison = choose_rows(method, table, rows or {}, grid or {}, preset, options, only)
    if table is not None:
        comparison = with_streams(comparison, presets.table(method, table), shards, stream)
    if split_columns is not None and any("split_column" in row.options for row in comparison.runnable):
        raise OptionError("split_column and split_columns both say which clips train: give one of them.")
    if source is not None and not Path(source).exists():
        raise OptionError(f"source={source}: there is no such file to answer for.")
    if source is not None:
        check_readable(source)
    first = shards_of(absolute(shards), None)
    protocol = AblationProtocol(
        comparison=comparison,
        folder=Path(out) if out is not None else Path("ablations") / "-".join([method, *([table] if table else [])]),
        common={
            "method": method,
            "shards": absolute(shards),
            "device": device,
            "precision": precision,
            "stream": stream,
        },
        against=comparison.against(against),
        table=table,
        preset=preset,
        seeds=seeds,
        split_columns=[None] if split_columns is None else choose_columns(split_columns, Cache(first).clips),
        draws=draws,
        tune=tune,
        tune_seeds=tune_seeds,
        tune_draws=tune_draws,
        min_steps=min_steps,
        widen=widen,
        retrain=comparison.retrain if retrain is None else retrain,
        tune_validation=tune_validation,
        pool=pool_for(workers, cluster, together, Path(first), device),
        options={**options, **(grid or {})},
    )
    clean(protocol.folder)  # what calls that were killed had begun to write
    with EachOnce():  # trials, runs and the report open the same caches
        try:
            train_rows(protocol)
        except ReferenceRowError:
            for name in (*CONCLUDED, *PICTURES):  # of an earlier call, whose reference row has now been trained anew
                (protocol.folder / name).unlink(missing_ok=True)
            raise
        conclusion = conclude(protocol.folder, source)
        text = write_report(conclusion)
    c = conclusion
    return Ablation(c.path, c.results, c.tests, c.tuning, text, c.comparison.failed)


def write_report(conclusion: Conclusion) -> str:
    """Write ``table.md`` and the plots of a comparison, in the place of earlier ones; the text of the tables."""
    text = "\n".join(filter(None, (markdown(conclusion), paper_columns(conclusion))))
    for name in PICTURES:
        (conclusion.path / name).unlink(missing_ok=True)
    with atomic(conclusion.path / "table.md") as temporary:
        temporary.write_text(text)
    draw(conclusion)
    return text


def draw(conclusion: Conclusion) -> None:
    """Write ``effects.png``, ``curve.png``, ``training.png``, ``gain.png`` and ``confusion.png``.

    Curves and gains are means over units with 95 % intervals, over seeds with a standard deviation where there is one
    unit. There is no curve without several observation ratios, and neither effects nor gain without a second row. The
    row whose gain and confusion are shown is the best other one by its mean on validation clips; where there are none,
    or they are what is reported, nothing may be selected, and it is the last other one.
    """
    c = conclusion
    several = len(c.results.drop_duplicates(list(UNIT))) > 1
    over = f"95 % intervals over {units_in_words(c.results)}" if several else "± std over seeds of one draw"
    levels = list(ratio_metrics(dict.fromkeys(c.results["metric"])))
    if len(levels) > 1:
        of = unit_means if several else values
        curves = {
            row.name: np.array([of(c.results, row.name, c.weights, c.split, m) for m in levels]).T
            for row in c.comparison.runnable
        }
        plots.observed_curves(c.path / "curve.png", curves, f"{c.split}, {over}", interval=several)
    _draw_training(c)
    if len(c.tests):
        _draw_effects(c, f"simultaneous {over}" if several else "one draw, no intervals")

    shown = shown_row(c)
    base = c.comparison.reference_of(shown, c.against) or shown
    session = Session()
    scored, gains = list[Scored](), dict[object, list[NDArray[np.float64]]]()
    for replicate in c.replicates:
        probs, y, classes = scores(_open(c.path, shown, replicate, session), c.weights, c.split)
        scored.append((probs, y, classes))
        if shown.name != base.name:
            others = scores(_open(c.path, base, replicate, session), c.weights, c.split)[0]
            unit = (replicate.split_column, replicate.draw) if several else replicate
            gains.setdefault(unit, []).append(per_class_gain(others, probs, y)[0])
    names = class_names(_open(c.path, base, c.replicates[0], session), classes)
    if gains:
        of_units = np.array([np.mean(each, axis=0) for each in gains.values()])  # seeds share samples, and so NaN
        title = f"{shown.name} over {base.name}, {c.split}, {over}"
        plots.class_gains(c.path / "gain.png", of_units, names, title, interval=several)
    observed = percent(scored[0][0].shape[1])
    several_levels = sorted({0, len(observed) // 2 - 1 if len(observed) > 2 else 0, len(observed) - 1})
    titles = {n: f"{observed[n]} % observed" * (len(observed) > 1) for n in several_levels}
    tables = {titles[n]: np.sum([confusion(probs, y, n + 1) for probs, y, _ in scored], axis=0) for n in several_levels}
    plots.confusions(c.path / "confusion.png", tables, names, f"{shown.name}, {c.split}")


def _draw_effects(conclusion: Conclusion, over: str) -> None:
    c, gains = conclusion, gains_of(conclusion)
    panels = {
        f"{c.split}, {WEIGHTS[str(weights)]}": [
            plots.EffectBar(e["row"], e["difference"], e["low"], e["high"], gains.get(e["row"]))
            for e in part.to_dict("records")
        ]
        for weights, part in c.tests.groupby("weights", sort=False)
    }
    against = ", ".join(dict.fromkeys(c.tests["against"]))
    title = f"{column_title(c.monitor)} over {against}; {over}"
    plots.effects(c.path / "effects.png", panels, title)


def shown_row(conclusion: Conclusion) -> TableRow:
    """The row whose classes are shown: the best on validation clips besides ``against``, which alone is its own.

    The last other one where the clips that are reported would choose.
    """
    c = conclusion
    others = [row for row in c.comparison.runnable if row.name != c.against] or [c.comparison.row(c.against)]
    if c.split == VALIDATION:
        return others[-1]
    found = [values(c.results, row.name, c.weights, "validation", c.monitor) for row in others]
    if not all(found):
        return others[-1]
    means = [mean_std(numbers)[0] for numbers in found]
    return others[means.index(max(means))]


def scores(run: Run, weights: str, split: str) -> Scored:
    """Probabilities ``[n, N, C]`` of labelled examples, class indices ``[n]``, classes.

    N = 1 without observation levels; of several anticipation times the main one is taken."""
    frame = run.predictions(weights, main_only=run.predictor(weights).axis is not None)
    frame = frame[(frame["split"] == split) & frame[run.target].notna()]
    classes = [c for c in list[Any](frame.columns) if isinstance(c, int)]
    levels = frame["observed"].nunique() if "observed" in frame else 1
    y = np.searchsorted(np.array(classes), frame[run.target].to_numpy(np.int64)[::levels]).astype(np.int64)
    return frame[classes].to_numpy(np.float64).reshape(-1, levels, len(classes)), y, classes


def _draw_training(conclusion: Conclusion) -> None:
    c = conclusion
    panels: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for row in c.comparison.runnable:
        for replicate in c.replicates:
            epochs = stage_summary(Run(run_folder(c.path, row.slug, replicate)))["rows"]  # none for nearest neighbours
            for split in (s for s in HELD_OUT if epochs and f"{s}/{c.monitor}" in epochs[0]):
                curve = np.array([epoch[f"{split}/{c.monitor}"] for epoch in epochs])
                panels.setdefault(split, {}).setdefault(row.name, []).append(curve)
    if panels:
        plots.training_curves(c.path / "training.png", panels, c.monitor)


def _open(out: Path, row: TableRow, replicate: Replicate, session: Session) -> Run:
    """A run on the session's opened cache."""
    run = Run(run_folder(out, row.slug, replicate))
    return Run(run.path, session.prepare(run.settings, run.options, {}))
