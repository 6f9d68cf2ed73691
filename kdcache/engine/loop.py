"""The training loop: one stage from wherever it stands to its end."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kdcache.data.loader import Plan, feed, shuffled
from kdcache.engine import checkpoint
from kdcache.engine.checkpoint import Progress
from kdcache.engine.log import Log
from kdcache.errors import DeviceError, OptionError
from kdcache.methods.contract import Batch, Data, Stage, reseed
from kdcache.runs.predictions import probabilities
from kdcache.workers import Interrupts

CHECK = 25  # steps between looks at whether the loss is still finite (each makes a GPU wait)


@dataclass
class _Run:
    """What the functions of the loop share while a stage trains."""

    stage: Stage
    data: Data
    folder: Path
    log: Log
    scaler: torch.amp.GradScaler
    interrupts: Interrupts
    save_every: float
    progress: Progress
    best: dict[str, Tensor]
    saved: float


def fit(
    stage: Stage, data: Data, folder: Path, log: Log, interrupts: Interrupts, save_every: float, scale: bool
) -> dict[str, Any]:
    """Train a stage, or go on with it, and return its summary; one that is finished is only loaded.

    After an interruption at any moment the same call continues and ends with the same numbers (bit for bit on a CPU):
    order and views are functions of (seed, stage, epoch), torch's random numbers are part of the checkpoint.
    ``scale`` scales the loss, as fp16 needs it.

    Raises:
        OptionError: the loss is no longer finite, or the checkpoint is damaged.
        DeviceError: the device's memory is too small.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint has been written.
    """
    summary = checkpoint.load_summary(folder)
    if summary is not None:
        checkpoint.load_weights(folder / _handed_on(stage), stage.module)
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    scaler = torch.amp.GradScaler(data.device.type, enabled=scale)
    reseed(data, f"{stage.name}/training")
    progress, best = checkpoint.load_state(folder, stage, scaler) or (Progress(), {})
    for stream in {id(s): s for s, _ in stage.train.inputs.values()}.values():
        how = "held on the device" if stream.held else "read ahead"
        data.say(f"{stage.name}: {len(stage.train)} samples, maps {list(stream.shape)} {how}")
    if progress.epoch or progress.step:
        data.say(f"{stage.name}: going on from epoch {progress.epoch + 1}, step {progress.step + 1}")
    run = _Run(stage, data, folder, log, scaler, interrupts, save_every, progress, best, time.monotonic())
    try:
        with log.curves(stage.name, progress.epoch):
            while not _over(run):
                _epoch(run)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{stage.name}: batch_size={stage.batch_size} does not fit into the memory of {data.device}; "
            f"set batch_size={max(1, stage.batch_size // 2)}, or hold=0 to keep the stream off the device."
        ) from error
    selected_by = next(iter(stage.tests), "")
    checkpoint.finish(folder, stage, progress, run.best, selected_by)
    checkpoint.load_weights(folder / _handed_on(stage), stage.module)
    summary = checkpoint.load_summary(folder)
    assert summary is not None
    return summary


def _handed_on(stage: Stage) -> str:
    """The weights with which the stages after this one go on."""
    return "best.safetensors" if stage.patience and stage.tests else "last.safetensors"


def _over(run: _Run) -> bool:
    """Whether the last epoch is done, or so many have brought nothing better that training stops early."""
    stage, progress = run.stage, run.progress
    stale = bool(stage.patience) and progress.epoch - progress.best_epoch >= stage.patience and bool(stage.tests)
    return progress.epoch >= stage.epochs or stale


def _epoch(run: _Run) -> None:
    stage, progress = run.stage, run.progress
    assert stage.optimizer is not None, stage.name
    assert stage.scheduler is not None, stage.name
    started = time.perf_counter()
    rng = np.random.default_rng([run.data.seed, zlib.crc32(stage.name.encode()), progress.epoch])
    views = max(stream.views for stream, _ in stage.train.inputs.values())
    plan = shuffled(stage.train, stage.batch_size, views, rng)
    stage.module.train()
    label = f"{stage.name} {progress.epoch + 1}/{stage.epochs}"
    with run.log.bar(label, sum(len(index) for index, _ in plan), progress.seen) as bar:
        for batch in feed(stage.train, plan[progress.step :], run.data.device):
            _step(run, batch)
            bar.update(len(batch["view"]))
            if run.interrupts.received is not None:
                _stop(run)
    _still_finite(run)

    row: dict[str, Any] = {
        "stage": stage.name,
        "epoch": progress.epoch + 1,
        "lr": stage.optimizer.param_groups[0]["lr"],
    }
    row |= {name: total / progress.seen for name, total in progress.sums.items()}
    row |= _watched(run, plan)
    row |= _tested(run)
    row["seconds"] = round(time.perf_counter() - started, 3)
    if isinstance(stage.scheduler, ReduceLROnPlateau):
        stage.scheduler.step(row[f"{next(iter(stage.tests))}/{stage.select}"])
    else:
        stage.scheduler.step()
    progress.rows.append(row)
    progress.epoch, progress.step, progress.seen, progress.sums = progress.epoch + 1, 0, 0, {}
    run.log.add(row)
    run.log.show(progress.rows)
    if run.interrupts.received is not None and not _over(run):
        _stop(run)
    if time.monotonic() - run.saved >= run.save_every and not _over(run):
        _save(run)


def _step(run: _Run, batch: Batch) -> None:
    stage, progress = run.stage, run.progress
    assert stage.optimizer is not None, stage.name
    with run.data.autocast():
        terms = stage.losses(batch)
    loss = torch.stack(list(terms.values())).sum()
    stage.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(run.scaler.scale(loss))
    if stage.grad_clip:
        run.scaler.unscale_(stage.optimizer)
        torch.nn.utils.clip_grad_norm_(stage.module.parameters(), stage.grad_clip)
    run.scaler.step(stage.optimizer)
    run.scaler.update()
    size = len(batch["view"])
    for name, value in terms.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + value.detach().double() * size
    progress.step += 1
    progress.seen += size
    if progress.step % CHECK == 0:
        _still_finite(run)


def _still_finite(run: _Run) -> None:
    """Bring the sums to the host, and stop if one is not finite: the last checkpoint is from before."""
    progress = run.progress
    progress.sums = {name: float(value) for name, value in progress.sums.items()}
    for name, value in progress.sums.items():
        if not math.isfinite(value):
            rate = run.stage.optimizer.param_groups[0]["lr"] if run.stage.optimizer else 0.0
            raise OptionError(
                f"{run.stage.name}: {name} is {value} in epoch {progress.epoch + 1}, step {progress.step}: "
                f"lower lr (now {rate:g}) or set grad_clip, for example grad_clip=5."
            )


def _save(run: _Run) -> None:
    _still_finite(run)
    checkpoint.save_state(run.folder, run.stage, run.scaler, run.progress, run.best)
    run.saved = time.monotonic()


def _stop(run: _Run) -> None:
    _save(run)
    run.data.say(
        f"stopped in epoch {run.progress.epoch + 1} of {run.stage.name}; the same command with this out goes on."
    )
    run.interrupts.leave()


@torch.no_grad()
def _watched(run: _Run, plan: Plan) -> dict[str, float]:
    """What the stage watches, on the last batch of the epoch."""
    if run.stage.watch is None:
        return {}
    run.stage.module.eval()
    for batch in feed(run.stage.train, plan[-1:], run.data.device):
        with run.data.autocast():
            return {name: float(value) for name, value in run.stage.watch(batch).items()}
    return {}


def _tested(run: _Run) -> dict[str, float]:
    """Metrics on every held-out split; the first one selects the best epoch, the earlier of equals."""
    measured: dict[str, float] = {}
    progress = run.progress
    for number, (split, items) in enumerate(run.stage.tests.items()):
        scores = probabilities(run.stage.module, run.data, items, run.stage.batch_size)
        metrics = run.stage.measure(scores, items.fields["y"].numpy())
        measured |= {f"{split}/{name}": value for name, value in metrics.items()}
        value = metrics[run.stage.select]
        if number == 0 and (progress.best is None or value > progress.best):
            progress.best, progress.best_epoch = value, progress.epoch + 1
            run.best = {k: v.detach().cpu().clone() for k, v in run.stage.module.state_dict().items()}
    return measured
