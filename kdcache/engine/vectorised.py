"""Several stages that differ in numbers alone, trained in one pass: each operation is done for all of them at once.

A GPU that trains a light head waits for the next kernel most of the time; for fifty heads the same kernels are started,
fifty times as large. Parameters are stacked (``stack``), the stage's own losses run under ``torch.func.vmap``, and each
head keeps its own data order, random numbers, rates, log, checkpoints and best epoch: it ends with the numbers that it
has when it trains alone, but for the last bits of sums taken in another order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from kdcache.data.loader import Plan, feed
from kdcache.device_errors import device_errors, is_out_of_memory
from kdcache.engine.freezing import frozen_but, set_train_mode
from kdcache.engine.loop import (
    FINITE_CHECK_EVERY,
    Training,
    diagnosed,
    end_epoch,
    evaluated,
    over,
    plan_of_epoch,
    save,
    scores_now,
    still_finite,
    stopped,
)
from kdcache.engine.masks import MaskSource, Wanted, draw, given_masks, random_state, set_random_state
from kdcache.engine.scoring import Probabilities
from kdcache.engine.stack import Stack, optimizer_of, why_not_stacked
from kdcache.engine.unrolled import can_unroll, unrolled
from kdcache.errors import OptionError
from kdcache.methods.contract import Batch, BatchSource, Stage, lengths_of


@dataclass
class Head:
    """One of the stages that train together."""

    run: Training
    rng: Tensor
    """State of the device's random numbers before its next step."""
    rng_cpu: Tensor
    problem: OptionError | None = None
    """Why it has ended before the others: its loss is no longer finite."""


class TooLarge(Exception):
    """The heads do not fit into the device's memory together; nothing has been changed."""


def head_of(run: Training) -> Head:
    """To be called when ``begin`` has just left torch's random numbers as they are before the next step."""
    return Head(run, random_state(run.data.device), torch.get_rng_state())


def why_not_together(stages: Sequence[Stage]) -> str:
    """Why stages cannot train in one pass, in words; empty where they can."""
    first = stages[0]
    if first.optimizer is None:
        return "there is nothing to train"
    if any(stage.patience for stage in stages):
        return "patience ends each by itself"
    for what in ("epochs", "batch_size", "grad_clip"):
        if len({getattr(stage, what) for stage in stages}) > 1:
            return f"they differ in {what}"
    sources = [stage.train for stage in stages]
    if len({(len(s), s.num_unlabeled, s.steps, *s.fields) for s in sources}) > 1:
        return "they differ in number of examples"
    for source in sources:
        streams = {name: stream for name, (stream, _) in source.inputs.items()}
        if any(lengths_of(stream) is not None for stream in streams.values()):
            return "their clips differ in length"
        if list(streams) != list(first.train.inputs) or any(
            stream is not first.train.inputs[name][0] for name, stream in streams.items()
        ):
            return "they read streams of their own"
    layers = [layer for layer in first.module.modules() if isinstance(layer, nn.RNNBase)]
    if not all(can_unroll(layer) for layer in layers):
        return "their recurrent layers have several layers"
    return why_not_stacked(stages)


def fit_together(heads: Sequence[Head]) -> None:
    """Train stages of which ``why_not_together`` says nothing, all at the same place, to their end.

    A head whose loss is no longer finite ends with its ``problem``; the others go on.

    Raises:
        TooLarge: they do not fit into the device's memory.
        DeviceError: they no longer do.
        KeyboardInterrupt, SystemExit: interrupted; each has written its checkpoint.
    """
    stage, device, before = heads[0].run.stage, heads[0].run.data.device, [head.rng for head in heads]
    remedy = f"set together={len(heads) // 2}, or end what else computes there; the same command goes on"
    together: _Together | None = None
    with device_errors(device, f"{stage.name}: {len(heads)} heads together", remedy):
        try:
            together = _Together(list(heads))
            together.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (together is not None and together.moved):
                raise
        else:
            return
        finally:
            if together is not None:
                together.leave()
    for head, rng in zip(heads, before, strict=True):
        head.rng = rng
    raise TooLarge


class _Objective(nn.Module):
    """What a stage minimises and answers, as a module over its network and what its losses read."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.module, self.reads = stage, stage.module, stage.reads or nn.Module()

    def forward(self, batch: Batch, predict: bool = False) -> Any:
        return self.stage.predict(batch) if predict else self.stage.losses(batch)


@dataclass
class _Together:
    """Heads while they train; the first one's network and losses stand for all."""

    heads: list[Head]
    moved: bool = False
    """Whether a step has been taken."""
    _sums: dict[str, Tensor] = field(default_factory=dict)
    """Each term of each head, summed over the samples of the epoch under way, float64 ``[heads]``."""

    def __post_init__(self) -> None:
        self.runs = [head.run for head in self.heads]
        self.stages = [run.stage for run in self.runs]
        self.first, self.device = self.runs[0], self.runs[0].data.device
        self.stack = Stack(self.stages)
        self.objective = _Objective(self.stages[0])
        self.reads, self.shared = _together_or_shared([stage.reads or nn.Module() for stage in self.stages])
        self.source, self.starts = _joined([stage.train for stage in self.stages])
        weights = {name: [stage.weights.get(name, 1.0) for stage in self.stages] for name in self.stages[0].weights}
        self.weights = {name: torch.tensor(each).to(self.device) for name, each in weights.items()}
        parts = [part for stage in self.stages for part in stage.module.modules()]
        self.drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts)
        self.wanted: dict[int, list[Wanted]] = {}
        for name in self.first.state.sums:
            each = [float(run.state.sums[name]) for run in self.runs]
            self._sums[name] = torch.tensor(each, dtype=torch.float64).to(self.device)

    @property
    def alive(self) -> list[int]:
        """Heads that go on."""
        return [number for number, head in enumerate(self.heads) if head.problem is None]

    def run(self) -> None:
        """All epochs that are left."""
        with ExitStack() as inside:
            for run in self.runs:
                inside.enter_context(run.log.curves(run.stage.name, run.state.epoch))
                inside.enter_context(frozen_but(run.stage.module, optimizer_of(run.stage)))
            masks = inside.enter_context(given_masks(self.stages[0].module))
            while self.alive and not over(self.runs[self.alive[0]]):
                self._epoch(masks)

    def leave(self) -> None:
        """Give each head tensors of its own."""
        if not self.moved:
            self.stack.restore()
        for number in range(len(self.heads)):
            self.stack.release(number)

    def _epoch(self, masks: MaskSource) -> None:
        started, state = time.perf_counter(), self.runs[self.alive[0]].state
        plans = [plan_of_epoch(run) for run in self.runs]
        plan = _joined_plan(plans, self.starts)
        rates = self.stack.rates()
        set_train_mode(self.stages[0].module, optimizer_of(self.stages[0]))
        label = f"{self.stages[0].name} × {len(self.heads)} {state.epoch + 1}/{self.stages[0].epochs}"
        samples = sum(len(index) for index, _ in plans[0])
        step = state.step
        with self.first.log.bar(label, samples, state.seen, state.epoch, self.stages[0].epochs) as bar:
            for batch in feed(self.source, plan[step:], self.device):
                size = len(plans[0][step][0])
                of_heads = {name: v.view(len(self.heads), size, *v.shape[1:]) for name, v in batch.items()}
                self._step(of_heads, rates, masks)
                self._count(size)
                step += 1
                bar.update(size)
                if step % FINITE_CHECK_EVERY == 0:
                    self._check_finite()
                self._stop_if_asked()
        self._check_finite()
        self._sums = {}
        probabilities = self._scored() if self.alive and scores_now(self.runs[self.alive[0]]) else None
        measured: dict[int, dict[str, float]] = {}
        for number in self.alive:
            run = self.runs[number]
            measured[number] = diagnosed(run, plans[number])
            with self._ending(number):
                if probabilities is not None:
                    measured[number] |= evaluated(run, probabilities[number])
        seconds = (time.perf_counter() - started) / len(self.heads)  # each has a share
        for number in self.alive:
            end_epoch(self.runs[number], measured[number], seconds)
        due = any(time.monotonic() - self.runs[number].saved >= self.runs[number].save_every for number in self.alive)
        if self.alive and not over(self.runs[self.alive[0]]):
            self._stop_if_asked()
            if due:
                self._save()

    def _step(self, batch: Batch, rates: list[dict[str, Tensor]], masks: MaskSource) -> None:
        drawn = self._masks(batch, masks)
        values, buffers = self.stack.values, self.stack.buffers

        def terms(own: Any, shared: dict[str, Tensor], weights: dict[str, Tensor], given: list[Tensor]) -> Any:
            masks.masks = iter(given)
            parameters, batch = own
            found = functional_call(self.objective, {**parameters, **shared}, (batch,))
            return {name: weights[name] * term if name in weights else term for name, term in found.items()}

        with self.first.data.autocast(), unrolled(self.stages[0].module):
            own = ({**_of_module(values), **_of_module(buffers), **self.reads}, batch)
            found = vmap(terms, in_dims=(0, None, 0, 0))(own, self.shared, self.weights, drawn)
        trained = [values[name] for name in self.stack.trained]
        loss = torch.stack(list(found.values())).sum()
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        self.moved = True
        self.stack.step(gradients, rates, self.stages[0].grad_clip)
        size = batch["view"].shape[1]
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * size

    def _masks(self, batch: Batch, masks: MaskSource) -> list[Tensor]:
        """What dropout multiplies by in this step."""
        masks.used = self.drops
        if not self.drops:
            return []
        size = batch["view"].shape[1]
        if size not in self.wanted:
            masks.noting = []
            first = {name: value[0] for name, value in batch.items()}
            own = {name: value[0] for name, value in self.reads.items()} | self.shared
            buffers = {name: value[0].clone() for name, value in self.stack.buffers.items()}
            with torch.no_grad(), self.first.data.autocast():
                functional_call(self.objective, {**own, **_of_module(buffers)}, (first,))
            self.wanted[size], masks.noting = masks.noting, None
        rng = [head.rng for head in self.heads]
        drawn = draw(self.stack.modules, rng, self.wanted[size])
        for head, state in zip(self.heads, rng, strict=True):
            head.rng = state
        return drawn

    def _count(self, size: int) -> None:
        for number in self.alive:
            state = self.runs[number].state
            state.step, state.steps, state.seen = state.step + 1, state.steps + 1, state.seen + size

    def _check_finite(self) -> None:
        """Bring the sums to the host, and end heads of which one is not finite."""
        sums = {name: value.tolist() for name, value in self._sums.items()}
        for number in self.alive:
            run = self.runs[number]
            run.state.sums = {name: each[number] for name, each in sums.items()}
            with self._ending(number):
                still_finite(run)

    @contextmanager
    def _ending(self, number: int) -> Iterator[None]:
        """What ends one head leaves the others alone."""
        try:
            yield
        except OptionError as error:
            self.heads[number].problem = error

    @torch.no_grad()
    def _scored(self) -> dict[int, dict[str, Probabilities]]:
        """Probabilities of each head for each split that all score alike."""
        module, found = self.stages[0].module, {number: dict[str, Probabilities]() for number in self.alive}
        module.eval()
        for split, source in self.stages[0].eval_sets.items():
            if not all(_same(source, stage.eval_sets[split]) for stage in self.stages[1:]):
                continue
            parts: list[Tensor] = []
            for batch in self.first.data.batches(source, self.stages[0].batch_size, 0):

                def answer(own: dict[str, Tensor], batch: Batch = batch) -> Tensor:
                    logits: Tensor = functional_call(self.objective, own, (batch, True))
                    return logits

                with self.first.data.autocast(), unrolled(self.stages[0].module):
                    logits = vmap(answer)({**_of_module(self.stack.values), **_of_module(self.stack.buffers)})
                parts.append(torch.softmax(logits.float(), -1).cpu())
            scores = torch.cat(parts, 1).numpy()
            for number in self.alive:
                found[number][split] = scores[number]
        return found

    def _save(self) -> None:
        self._check_finite()
        for number in self.alive:
            head = self.heads[number]
            torch.set_rng_state(head.rng_cpu)
            set_random_state(head.rng, self.device)
            self.stack.release(number)  # a view would be written with the whole stack
            save(head.run)
            self.stack.attach(number)

    def _stop_if_asked(self) -> None:
        if self.first.interrupts.received is not None:
            self._save()
            stopped(self.first)


def _of_module(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in named.items()}


def _together_or_shared(reads: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Buffers of each head side by side, and those that are the same for all, which all then hold once."""
    stacked, shared = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in reads[0].named_buffers():
        others = [other.get_buffer(name) for other in reads[1:]]
        if all(torch.equal(value, other) for other in others):
            shared[f"reads.{name}"] = value
            for other in others:
                other.data = value
        else:
            stacked[f"reads.{name}"] = torch.stack([value, *others])
    return stacked, shared


def _joined(sources: Sequence[BatchSource]) -> tuple[BatchSource, list[int]]:
    """The examples of all heads one after the other, and where each head's begin."""
    inputs = {
        name: (stream, torch.cat([source.inputs[name][1] for source in sources]))
        for name, (stream, _) in sources[0].inputs.items()
    }
    fields = {name: torch.cat([source.fields[name] for source in sources]) for name in sources[0].fields}
    return BatchSource(inputs, fields), [number * len(sources[0]) for number in range(len(sources))]


def _joined_plan(plans: Sequence[Plan], starts: Sequence[int]) -> Plan:
    """At each step the batches of all heads one after the other."""
    return [
        (torch.cat([i + at for (i, _), at in zip(step, starts, strict=True)]), torch.cat([v for _, v in step]))
        for step in zip(*plans, strict=True)
    ]


def _same(one: BatchSource, other: BatchSource) -> bool:
    """Whether two sources have the same examples."""
    inputs = one.inputs.keys() == other.inputs.keys() and all(
        stream is other.inputs[name][0] and torch.equal(rows, other.inputs[name][1])
        for name, (stream, rows) in one.inputs.items()
    )
    return inputs and all(torch.equal(values, other.fields[name]) for name, values in one.fields.items())
