"""Stage two: heads trained on cached streams. ``train`` makes a run, ``Run`` opens one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from kdcache.data.prepare import Prepared, absolute
from kdcache.engine.checkpoint import STATE, SUMMARY
from kdcache.engine.log import Log
from kdcache.engine.loop import fit
from kdcache.errors import OptionError
from kdcache.files import PARTIAL, atomic
from kdcache.methods import method as method_module
from kdcache.methods.contract import Stage
from kdcache.recipe import differences, digest
from kdcache.runs.config import (
    SETTABLE,
    Settings,
    build,
    load_config,
    parse_set,
    read_config,
    to_table,
    write_config,
)
from kdcache.runs.environment import environment
from kdcache.runs.run import CONFIG, METRICS, PREDICTIONS, Run
from kdcache.runs.session import Session
from kdcache.runtime import reproducible
from kdcache.workers import Interrupts

__all__ = ["Run", "Session", "load_config", "parse_set", "train"]


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
        method: name in ``kdcache.methods.METHODS``, such as ``anticipation``.
        shards: folder of the cache.
        seed: of initialisation, order, views, dropout and which labels are kept.
        out: the run's folder; default ``runs/<method>-<n>``, the first that is free. Where a run with the same
            settings lies, it is continued, or returned as it is when it has finished.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``auto`` (fp32 on a CPU, bf16 on a GPU), ``fp32``, ``bf16``, ``fp16``.
        stream: which cached features, if there are several; ``a,b`` joins the vectors of two.
        session: shared by several calls, keeps what they have in common.
        options: fields of the method's ``Options``, and of ``Settings``: ``weights``, ``recipe``, ``hold``, ``split``,
            ``validation``, ``save_every``.

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
    session = session or Session()
    module = method_module(method)
    given = {name: options.pop(name) for name in SETTABLE if name in options}
    given |= {"device": device, "precision": precision, "stream": stream}
    settings = build(Settings, {"method": method, "shards": absolute(shards), "seed": seed, **given})
    wanted = build(module.Options, options)
    folder = Path(out) if out is not None else _free_folder(method)
    before = _earlier(folder, settings, wanted)
    if (folder / METRICS).exists():
        session.say(f"{folder}: this run has finished; delete the folder to train it anew")
        return Run(folder)

    prepared = session.prepare(settings, wanted, before)
    resolved = module.resolve(wanted, prepared.data)
    facts = {**prepared.facts, "options": to_table(resolved)}
    changed = differences(before, facts) if before else []
    if changed:
        raise OptionError(f"{folder} cannot be continued, for its data or machine changed: {'; '.join(changed)}.")
    stages = module.stages(resolved, prepared.data)
    first = next(stages)  # what cannot even begin leaves no folder behind
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / CONFIG, settings, wanted, facts)
    _write_json(folder / "environment.json", environment(prepared.data.device))
    recipes = {name: {"digest": digest(recipe), "recipe": recipe} for name, recipe in prepared.recipes.items()}
    _write_json(folder / "recipes.json", recipes)
    last_rows = _fit_all(folder, chain([first], stages), prepared, settings.save_every, session)
    return _conclude(folder, prepared, last_rows)


def _fit_all(
    folder: Path, stages: Iterable[Stage], prepared: Prepared, save_every: float, session: Session
) -> dict[str, Any]:
    """Train every stage in turn; the last row of each stage's log."""
    log, interrupts = Log(folder, session.bars), Interrupts()
    last_rows: dict[str, Any] = {}
    scale = prepared.facts["precision"] == "fp16"
    with reproducible(prepared.data.device), interrupts.watch():
        for stage in stages:
            session.take(stage, prepared, folder / stage.name)
            summary = fit(stage, prepared.data, folder / stage.name, log, interrupts, save_every, scale)
            session.keep(stage, prepared, folder / stage.name)
            log.done += summary["rows"]
            last_rows[stage.name] = summary["rows"][-1] if summary["rows"] else {}
    log.show([])
    return last_rows


def _conclude(folder: Path, prepared: Prepared, last_rows: dict[str, Any]) -> Run:
    """Judge the last and the best weights, write predictions and, as the mark of a finished run, the metrics."""
    run = Run(folder, prepared)
    metrics = run.evaluate()
    metrics["stages"] = last_rows
    predictions = run.predictions()
    with atomic(folder / PREDICTIONS) as temporary:
        predictions.to_csv(temporary, float_format="%.6g", lineterminator="\n", index=False)
    _write_json(folder / METRICS, metrics)
    return run


def _free_folder(method: str) -> Path:
    number = 0
    while (folder := Path("runs") / f"{method}-{number}").exists():
        number += 1
    return folder


def _earlier(folder: Path, settings: Settings, options: Any) -> dict[str, Any]:
    """What the run in ``folder`` had resolved, {} where there is none; ``OptionError`` when it is another run."""
    if not (folder / CONFIG).exists():
        if folder.is_dir() and any(not p.name.endswith(PARTIAL) for p in folder.iterdir()):
            raise OptionError(f"{folder} exists and is no run: choose another folder for out.")
        return {}
    old_settings, old_options, resolved = read_config(folder / CONFIG)
    if not any((stage / name).exists() for stage in folder.iterdir() for name in (STATE, SUMMARY)):
        return {}  # nothing has been trained yet: these settings replace the old ones
    changed = differences(
        {**asdict(old_settings), "options": asdict(old_options)}, {**asdict(settings), "options": asdict(options)}
    )
    if changed:
        raise OptionError(f"{folder} holds a run with other settings ({'; '.join(changed)}): choose another out.")
    return resolved


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
