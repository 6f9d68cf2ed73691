"""The training loop: one stage from wherever it stands to its end."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kdcache.data.loader import Plan, common_views, feed, shuffled
from kdcache.device_errors import device_errors
from kdcache.engine import checkpoint
from kdcache.engine.checkpoint import TrainState
from kdcache.engine.distributed import Rank, here
from kdcache.engine.freezing import frozen_but, set_train_mode
from kdcache.engine.log import Log
from kdcache.engine.scoring import Probabilities, probabilities
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import VALIDATION, Batch, Data, Stage, reseed
from kdcache.workers import Interrupts

FINITE_CHECK_EVERY = 25  # steps between looks at whether the loss is still finite (each makes a GPU wait)


@dataclass
class Training:
    """A stage while it trains."""

    stage: Stage
    data: Data
    folder: Path
    log: Log
    scaler: torch.amp.GradScaler
    interrupts: Interrupts
    save_every: float
    eval_every: int
    state: TrainState
    best: dict[str, Tensor]
    saved: float
    place: Rank = field(default_factory=Rank)
    sizes: list[int] = field(default_factory=list)
    """Examples of each batch of the epoch, of all processes together."""
    asked: bool = False
    """Whether any of several processes has been asked to stop."""


def fit_stage(
    stage: Stage,
    data: Data,
    folder: Path,
    log: Log,
    interrupts: Interrupts,
    save_every: float,
    scale: bool,
    eval_every: int = 1,
) -> dict[str, Any]:
    """Train a stage, or go on with it, and return its summary; one that is finished is only loaded.

    After an interruption at any moment the same call continues and ends with the same numbers (bit for bit on a CPU):
    order and views are functions of (seed, stage, epoch), torch's random numbers are part of the checkpoint; the seed
    is that of the run, unless the stage has its own. ``scale`` scales the loss, as fp16 needs it. Held-out clips are
    scored after every ``eval_every`` epochs and after the last.

    Raises:
        OptionError: the loss is no longer finite, early stopping without validation clips, or a damaged checkpoint.
        DeviceError: the device's memory is too small, or the device is broken.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint has been written.
    """
    summary = trained(stage, folder)
    if summary is not None:
        return summary
    run = begin(stage, data, folder, log, interrupts, save_every, scale, eval_every)
    if stage.optimizer is not None:
        _run_epochs(run)
    return end(run)


def trained(stage: Stage, folder: Path) -> dict[str, Any] | None:
    """The summary of a stage that is finished, with whose weights its module is filled; None of another."""
    return checkpoint.load_finished(folder, stage)


def begin(
    stage: Stage,
    data: Data,
    folder: Path,
    log: Log,
    interrupts: Interrupts,
    save_every: float,
    scale: bool,
    eval_every: int,
) -> Training:
    """A stage that is not finished, where it stands; torch's random numbers are then those of its next step. See
    ``fit_stage``."""
    if stage.seed is not None:
        data = replace(data, seed=stage.seed)
    if stage.patience and VALIDATION not in stage.eval_sets:
        raise OptionError(
            f"{stage.name}: patience={stage.patience} needs validation clips, which alone may select: set "
            "validation=0.2, mark some in the manifest, or set patience=0."
        )
    if isinstance(stage.scheduler, ReduceLROnPlateau) and VALIDATION not in stage.eval_sets:
        raise OptionError(
            f"{stage.name}: its learning rate follows validation clips, and there are none: set validation=0.2, or "
            "mark some in the manifest."
        )
    follows = "its learning rate follows" if isinstance(stage.scheduler, ReduceLROnPlateau) else ""
    follows = f"patience={stage.patience} counts" if 0 < stage.patience < eval_every else follows
    if eval_every > 1 and follows:
        raise OptionError(f"{stage.name}: {follows} the epochs between two scores: set eval_every=1.")
    folder.mkdir(parents=True, exist_ok=True)
    scaler = torch.amp.GradScaler(data.device.type, enabled=scale)
    reseed(data, f"{stage.name}/training")
    state, best = checkpoint.load_state(folder, stage, scaler, data.device, data.seed) or (TrainState(), {})
    for stream in {id(s): s for s, _ in stage.train.inputs.values()}.values():
        how = "in the device's memory" if stream.resident else "read while training"
        logger.info("%s: %d examples, arrays %s %s", stage.name, len(stage.train), list(stream.shape), how)
    if state.epoch or state.step:
        logger.info("%s: going on from epoch %d, step %d", stage.name, state.epoch + 1, state.step + 1)
    now, place = time.monotonic(), here()
    if place.rank:  # other masks of dropout than process 0
        reseed(data, f"{stage.name}/training/{place.rank}/{state.steps}")
    return Training(stage, data, folder, log, scaler, interrupts, save_every, eval_every, state, best, now, place)


def end(run: Training) -> dict[str, Any]:
    """Leave the weights and the summary of a stage whose epochs are done; the summary."""
    checkpoint.finish(run.folder, run.stage, run.state, run.best)
    summary = trained(run.stage, run.folder)
    assert summary is not None
    return summary


def _run_epochs(run: Training) -> None:
    stage = run.stage
    assert stage.optimizer is not None
    half = f"set batch_size={stage.batch_size // 2}, or " if stage.batch_size > 1 else "set "
    remedy = f"{half}memory_fraction=0 to keep the stream off the device"
    with (
        device_errors(run.data.device, f"{stage.name}: batch_size={stage.batch_size}", remedy),
        run.log.curves(stage.name, run.state.epoch),
        frozen_but(stage.module, stage.optimizer),
    ):
        while not over(run):
            _epoch(run)


def over(run: Training) -> bool:
    """Whether the last epoch is done, or so many have brought nothing better that training stops early."""
    stage, state = run.stage, run.state
    stale = 0 < stage.patience <= state.epoch - state.best_epoch and state.epoch % run.eval_every == 0
    return state.epoch >= stage.epochs or stale


def _epoch(run: Training) -> None:
    stage, state = run.stage, run.state
    assert stage.optimizer is not None, stage.name
    started = time.perf_counter()
    plan = plan_of_epoch(run)
    set_train_mode(stage.module, stage.optimizer)
    label = f"{stage.name} {state.epoch + 1}/{stage.epochs}"
    run.sizes = [len(index) for index, _ in plan]
    with run.log.bar(label, sum(run.sizes), state.seen, state.epoch, stage.epochs) as bar:
        for batch in feed(stage.train, run.place.part(plan[state.step :]), run.data.device):
            _step(run, batch)
            bar.update(run.sizes[state.step - 1])
            if _asked(run):
                _stop(run)
    still_finite(run)
    measured = diagnosed(run, plan)
    if scores_now(run):
        measured |= evaluated(run, {})
    end_epoch(run, measured, time.perf_counter() - started)
    if run.place.world == 1 and _asked(run) and not over(run):  # several agree in the next step
        _stop(run)
    if time.monotonic() - run.saved >= run.save_every and not over(run):
        save(run)


def _asked(run: Training) -> bool:
    """Whether to stop after this step: of several processes all do, or none."""
    return run.asked if run.place.world > 1 else run.interrupts.received is not None


def plan_of_epoch(run: Training) -> Plan:
    """The batches of the epoch under way: a function of seed, stage and epoch."""
    stage = run.stage
    rng = np.random.default_rng([run.data.seed, zlib.crc32(stage.name.encode()), run.state.epoch])
    return shuffled(stage.train, stage.batch_size, common_views(stage.train), rng)


def scores_now(run: Training) -> bool:
    """Whether held-out clips are scored after the epoch under way."""
    return (run.state.epoch + 1) % run.eval_every == 0 or run.state.epoch + 1 == run.stage.epochs


def end_epoch(run: Training, measured: dict[str, float], seconds: float) -> None:
    """Log an epoch whose steps are done, and go on to the next."""
    stage, state = run.stage, run.state
    assert stage.optimizer is not None, stage.name
    row: dict[str, Any] = {
        "stage": stage.name,
        "epoch": state.epoch + 1,
        "lr": stage.optimizer.param_groups[0]["lr"],
    }
    row |= {name: total / state.seen for name, total in state.sums.items()}
    row |= {**measured, "seconds": round(seconds, 3)}
    if isinstance(stage.scheduler, ReduceLROnPlateau):
        stage.scheduler.step(row[f"{VALIDATION}/{stage.monitor}"])
    elif stage.scheduler is not None:
        stage.scheduler.step()
    state.rows.append(row)
    state.epoch, state.step, state.seen, state.sums = state.epoch + 1, 0, 0, {}
    run.log.add(state.rows)


def _step(run: Training, batch: Batch) -> None:
    stage, state = run.stage, run.state
    assert stage.optimizer is not None, stage.name
    with run.data.autocast():
        terms = stage.terms(batch)
    loss = torch.stack(list(terms.values())).sum()
    stage.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(run.scaler.scale(loss))
    moved = [p for p in stage.module.parameters() if p.requires_grad]  # others may hold gradients of earlier stages
    size, stop = run.sizes[state.step], run.interrupts.received is not None
    terms, run.asked = run.place.average(moved, terms, len(batch["view"]), size, stop)
    if stage.grad_clip:
        run.scaler.unscale_(stage.optimizer)
        torch.nn.utils.clip_grad_norm_(moved, stage.grad_clip)
    run.scaler.step(stage.optimizer)
    run.scaler.update()
    for name, value in terms.items():
        state.sums[name] = state.sums.get(name, 0.0) + value.detach().double() * size
    state.step += 1
    state.steps += 1
    state.seen += size
    if state.step % FINITE_CHECK_EVERY == 0:
        still_finite(run)


def still_finite(run: Training) -> None:
    """Bring the sums to the host, and stop if one is not finite: the last checkpoint is from before."""
    state = run.state
    state.sums = {name: float(value) for name, value in state.sums.items()}
    for name, value in state.sums.items():
        if not math.isfinite(value):
            raise OptionError(
                f"{run.stage.name}: {name} is {value} in epoch {state.epoch + 1}, step {state.step}: {_remedy(run)}"
            )


def _remedy(run: Training) -> str:
    """What helps against numbers that are not finite."""
    rate = run.stage.optimizer.param_groups[0]["lr"] if run.stage.optimizer else 0.0
    return f"lower lr (now {rate:g}) or set grad_clip, for example grad_clip=5."


def save(run: Training) -> None:
    still_finite(run)
    checkpoint.save_state(run.folder, run.stage, run.scaler, run.state, run.best, run.data.device, run.data.seed)
    run.saved = time.monotonic()


def _stop(run: Training) -> None:
    save(run)
    stopped(run)


def stopped(run: Training) -> None:
    """Say where a stage that has been saved stands, and leave."""
    logger.info(
        "stopped in epoch %d of %s; the same command with this out goes on.", run.state.epoch + 1, run.stage.name
    )
    run.interrupts.leave()


@torch.no_grad()
def diagnosed(run: Training, plan: Plan) -> dict[str, float]:
    """The stage's diagnostics, on the last batch of the epoch."""
    if run.stage.diagnostics is None:
        return {}
    run.stage.module.eval()
    for batch in feed(run.stage.train, plan[-1:], run.data.device):
        with run.data.autocast():
            return {name: float(value) for name, value in run.stage.diagnostics(batch).items()}
    return {}


def evaluated(run: Training, known: Mapping[str, Probabilities]) -> dict[str, float]:
    """Metrics on every held-out split; ``validation`` selects the best epoch, the earlier of equals.

    ``known``: probabilities of splits where they have been computed."""
    stage, state = run.stage, run.state
    measured: dict[str, float] = {}
    for split, source in stage.eval_sets.items():
        scores = known.get(split)
        if scores is None:
            scores = probabilities(stage.module, stage.predict, run.data, source, stage.batch_size)
        if not np.isfinite(scores).all():  # the last step of the epoch has led there
            after = f"what it predicts after epoch {state.epoch + 1} is not finite"
            raise OptionError(f"{stage.name}: {after}: {_remedy(run)}")
        metrics = run.place.of_first(stage.metrics_fn(scores, source.fields["y"].numpy()))
        measured |= {f"{split}/{name}": value for name, value in metrics.items()}
        value = metrics[stage.monitor]
        if split == VALIDATION and (state.best is None or value > state.best):
            state.best, state.best_epoch = value, state.epoch + 1
            run.best = {k: v.detach().cpu().clone() for k, v in stage.module.state_dict().items()}
    return measured
