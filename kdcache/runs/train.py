"""``kdcache.train``: every stage of a method on a cache, into a run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from kdcache.csv_text import neutral_frame
from kdcache.data.training_data import TrainingData
from kdcache.device_errors import device_errors
from kdcache.engine.checkpoint import BEST, LAST, STATE, SUMMARY, load_summary
from kdcache.engine.distributed import here
from kdcache.engine.log import Log
from kdcache.engine.loop import fit_stage
from kdcache.errors import OptionError
from kdcache.files import PARTIAL, atomic
from kdcache.log import logger, show_log
from kdcache.methods import load_method
from kdcache.methods import method as method_module
from kdcache.methods.checks import check_inputs, check_predictor
from kdcache.methods.contract import Method, Stage
from kdcache.methods.labels import fitted_on_training
from kdcache.methods.registry import BUILT_IN
from kdcache.numerics import reproducible
from kdcache.options import build, to_table
from kdcache.recipe import differences, digest
from kdcache.runs.config import SETTABLE, RunSettings, own_names, read_config, write_config
from kdcache.runs.environment import environment
from kdcache.runs.folder import CONFIG, METRICS, PREDICTIONS, RECIPES, write_result
from kdcache.runs.prepare import absolute
from kdcache.runs.run import Run
from kdcache.runs.session import Session
from kdcache.seals import write_json
from kdcache.store import clean
from kdcache.store.failures import save_failures
from kdcache.workers import Interrupts

__all__ = ["Run", "Session", "train"]

OF_TRAIN = ("seed", "device", "precision", "stream")
"""Arguments of ``train`` that are settings of the run."""

TOO_SMALL = "what the run keeps there beside its batches", "set a smaller batch_size, or memory_fraction=0"
"""What does not fit, and what to do, where networks and targets are made; the loop names the stage."""

Prepare = Callable[[dict[str, Any]], TrainingData]
"""What an earlier call of the run had resolved → the data, under the same conditions."""


def train(
    method: str,
    shards: str | Path,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    stream: str | None = None,
    session: Session | None = None,
    **options: Any,
) -> Run:
    """Train a method on a cache, or go on with a training that was interrupted.

    Args:
        method: a name such as ``anticipation`` (``kdcache.methods.names()``), or a method of one's own by its import
            path or file, see ``kdcache.methods.load_method``.
        shards: folder of the cache.
        seed: of initialisation, order, views, augmentation and dropout.
        out: the run's folder; default ``runs/<method>-<n>``, the first that is free. Where a run with the same
            settings lies, it is continued, or returned as it is when it has finished.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``auto`` (fp32 on a CPU, bf16 on a GPU), ``fp32``, ``bf16``, ``fp16``.
        stream: which cached streams, if several would do; ``a,b`` joins the vectors of two, ``input=a`` names the input
            where a method reads several.
        session: shared by several calls, keeps what they have in common.
        options: fields of the method's ``Options``, and of ``RunSettings``: ``weights``, ``recipe``,
            ``memory_fraction``, ``split_column``, ``validation``, ``validation_seed``, ``validation_as``, ``tau_s``,
            ``save_every``, ``eval_every``, ``keep_stages``, ``deterministic``.

    Returns:
        The finished run: ``.metrics``, ``.predict(...)``, ``.history``, ``.path``, ``.config``.

    Raises:
        OptionError: an unknown or unusable option, nothing to train on, a folder with another run, a loss that is not
            finite.
        DeviceError: a device that is not there or too small.
        StoreError: a damaged cache, or one that mixes recipes.
        WeightsError: the checkpoint to start from cannot be found.
        KeyboardInterrupt, SystemExit: interrupted by a signal; the same call goes on.
    """
    session, method = session or Session(), load_method(method)
    given = {"seed": seed, "device": device, "precision": precision, "stream": stream}
    settings, wanted = checked(method, shards, **given, **options)
    folder = Path(out) if out is not None else free_folder(Path("runs"), method)
    return train_into(folder, settings, wanted, session, lambda before: session.prepare(settings, wanted, before))


def checked(method: str, shards: str | Path, **given: Any) -> tuple[RunSettings, Any]:
    """Settings of a run, and options of its method, from what ``train`` is given; ``OptionError`` for bad ones."""
    options = own_names(method, {name: value for name, value in given.items() if name not in OF_TRAIN})
    of_run = {name: options.pop(name) for name in SETTABLE if name in options}
    of_run |= {name: value for name, value in given.items() if name in OF_TRAIN}
    settings = build(RunSettings, {"method": method, "shards": absolute(shards), **of_run})
    return settings, build(method_module(method).Options, options)


@dataclass
class Begun:
    """A run of which at least the first stage has been made."""

    folder: Path
    settings: RunSettings
    opened: TrainingData
    stages: Iterator[Stage]
    log: Log
    last_rows: dict[str, Any] = field(default_factory=dict)
    """Of each stage that is done the last row of its log."""

    def next(self) -> tuple[Stage, Path] | None:
        """The next stage and its folder; None after the last."""
        with device_errors(self.opened.data.device, *TOO_SMALL):
            stage = next(self.stages, None)
        if stage is None:
            return None
        if stage.name in self.last_rows:
            raise ValueError(f"two stages are named {stage.name!r}: the second would be taken for trained")
        return stage, self.folder / stage.name

    def done(self, stage: Stage, summary: dict[str, Any]) -> None:
        """Note a trained stage."""
        self.log.done += summary["rows"]
        self.last_rows[stage.name] = summary["rows"][-1] if summary["rows"] else {}


def train_into(
    folder: Path,
    settings: RunSettings,
    options: Any,
    session: Session,
    prepare: Prepare,
    on_start: Callable[[], None] = lambda: None,
) -> Run:
    """Train with checked settings and options, or go on with the training in ``folder``; see ``train``.

    ``on_start`` is called once the folder is there: what cannot even begin leaves none behind. Processes that
    ``torchrun`` has started train the run together.
    """
    place = here()
    with place.folder(folder) as own:
        begun = begin_run(own, settings, options, session, prepare, on_start if place.rank == 0 else lambda: None)
        if isinstance(begun, Begun):
            _fit_all(begun, session)
            if place.rank == 0:
                return conclude(begun)
    return begun if isinstance(begun, Run) and place.rank == 0 else Run(folder)


def begin_run(
    folder: Path,
    settings: RunSettings,
    options: Any,
    session: Session,
    prepare: Prepare,
    on_start: Callable[[], None] = lambda: None,
) -> Begun | Run:
    """Open what a run reads, and write its configuration; a run that has finished as it is. See ``train_into``."""
    show_log()
    method = method_module(settings.method)
    before = _earlier(folder, settings, options)
    for place in (folder, *folder.glob("*/")):
        clean(place)  # what calls that were killed had begun to write, which may be gigabytes
    if (folder / METRICS).exists():
        logger.info("%s: this run has finished; delete the folder to train it again", folder)
        return Run(folder)

    if settings.method not in BUILT_IN:
        check_inputs(method.inputs(options), settings.method)
    opened = prepare(before)
    resolved = method.resolve(options, opened.data)
    facts = {**opened.resolved, "options": to_table(resolved)}
    changed = differences(before, facts) if before else []
    if changed:
        raise OptionError(f"{folder} cannot be continued, for its data or machine changed: {'; '.join(changed)}.")
    if settings.method not in BUILT_IN:
        _check_answers(method, settings.method, resolved, opened)
    stages = method.stages(resolved, opened.data)
    with device_errors(opened.data.device, *TOO_SMALL):
        first = next(stages, None)
    if first is None:
        raise ValueError(f"method {settings.method} yields no stage")
    folder.mkdir(parents=True, exist_ok=True)
    on_start()
    write_config(folder / CONFIG, settings, options, facts)
    write_json(folder / "environment.json", environment(opened.data.device))
    recipes = {name: {"digest": digest(recipe), "recipe": recipe} for name, recipe in opened.recipes.items()}
    write_json(folder / RECIPES, recipes)
    save_failures(folder, opened.failures)
    return Begun(folder, settings, opened, chain([first], stages), Log(folder, session.bars))


def _check_answers(method: Method, name: str, resolved: Any, opened: TrainingData) -> None:
    """``OptionError`` where what a method of one's own will answer from is not there when it answers."""
    with torch.random.fork_rng(devices=[]):
        check_predictor(method.predictor(resolved, opened.data), method.inputs(resolved), name)


def _fit_all(begun: Begun, session: Session) -> None:
    """Train every stage in turn."""
    opened, settings, interrupts = begun.opened, begun.settings, Interrupts()
    scale, every = opened.resolved["precision"] == "fp16", settings.eval_every
    with reproducible(opened.data.device, settings.deterministic), interrupts.watch():
        while (following := begun.next()) is not None:
            stage, own = following
            session.restore_shared_stage(stage, opened, own, every)
            summary = fit_stage(stage, opened.data, own, begun.log, interrupts, settings.save_every, scale, every)
            session.share_stage(stage, opened, own, every)
            begun.done(stage, summary)
            if interrupts.received is not None:  # within the last epoch, whose stage is saved by now
                interrupts.leave()


def conclude(begun: Begun) -> Run:
    """Evaluate the last and the best weights, write predictions and, as the mark of a finished run, the metrics."""
    folder = begun.folder
    begun.log.show()
    run = Run(folder, begun.opened)
    with device_errors(begun.opened.data.device, *TOO_SMALL):
        metrics = run.evaluate()
    metrics["stages"] = begun.last_rows
    predictor = run.predictor("last")
    summaries = [load_summary(folder / name) for name in (*predictor.trained_in, predictor.stage)]
    if all(summary and "steps" in summary for summary in summaries):  # stages of version 0.1 do not say
        metrics["steps"] = sum(summary["steps"] for summary in summaries if summary)
    seen, count = fitted_on_training(begun.opened.data)
    if seen:
        metrics["fitted_on_training"] = {"clips": seen, "of": count}
    with device_errors(begun.opened.data.device, *TOO_SMALL):
        predictions = run.predictions(main_only=predictor.axis is not None)  # all of them would be gigabytes
    with atomic(folder / PREDICTIONS) as temporary:
        neutral_frame(predictions).to_csv(temporary, float_format="%.6g", lineterminator="\n", index=False)
    write_result(folder, metrics)
    if not run.settings.keep_stages:
        for stage in (name for name in begun.last_rows if name != predictor.stage):
            for weights in (LAST, BEST):
                (folder / stage / weights).unlink(missing_ok=True)
    return run


def free_folder(parent: Path, name: str) -> Path:
    """``<parent>/<name>-<n>``, the first that is free."""
    number = 0
    while (folder := parent / f"{name}-{number}").exists():
        number += 1
    return folder


def _earlier(folder: Path, settings: RunSettings, options: Any) -> dict[str, Any]:
    """What the run in ``folder`` had resolved, {} where there is none; ``OptionError`` when it is another run."""
    if not (folder / CONFIG).exists():
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{folder} is no folder, which a run is: choose another out.")
        if folder.is_dir() and any(not p.name.endswith(PARTIAL) for p in folder.iterdir()):
            raise OptionError(f"{folder} exists and is no run: choose another folder for out.")
        return {}
    old_settings, old_options, resolved = read_config(folder / CONFIG)
    if not any((stage / name).exists() for stage in folder.iterdir() for name in (STATE, SUMMARY)):
        return {}  # nothing has been trained yet: these settings replace the old ones
    changed = differences(
        {**asdict(old_settings), "keep_stages": settings.keep_stages, "options": asdict(old_options)},
        {**asdict(settings), "options": asdict(options)},
    )
    if changed:
        raise OptionError(f"{folder} holds a run with other settings ({'; '.join(changed)}): choose another out.")
    return resolved
