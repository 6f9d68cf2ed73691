"""Runs that differ in numbers alone, trained in one pass; each leaves the folder that it has when it trains alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcache.data.training_data import TrainingData
from kdcache.engine.log import SHOWN_EVERY
from kdcache.engine.loop import begin, end, fit_stage, trained
from kdcache.engine.vectorised import Head, TooLarge, fit_together, head_of, why_not_together
from kdcache.errors import KdcacheError, OptionError, WriteError
from kdcache.log import logger
from kdcache.methods.contract import Stage
from kdcache.methods.registry import method
from kdcache.numerics import reproducible
from kdcache.runs.folder import METRICS
from kdcache.runs.run import Run
from kdcache.runs.session import Session
from kdcache.runs.train import Begun, begin_run, checked, conclude
from kdcache.workers import Interrupts

OWN = ("seed", "save_every", "keep_stages")
"""Settings that may differ between runs that train together."""


def alike(folder: Path, arguments: Mapping[str, Any]) -> Hashable | None:
    """What is equal for runs that can train together; None for one that trains alone, or has finished.

    Args:
        folder: of the run.
        arguments: of ``train``.
    """
    own = getattr(method(arguments["method"]), "together", None)
    if own is None or (folder / METRICS).exists():
        return None
    try:
        settings, options = checked(**arguments)
    except OptionError:
        return None  # training it says what is wrong
    common = {name: value for name, value in asdict(settings).items() if name not in OWN}
    numbers = own(options)
    return None if numbers is None else (json.dumps(common, sort_keys=True), numbers)


@dataclass
class _Run:
    """One of the runs, with the stage that it is at."""

    number: int
    begun: Begun
    stage: Stage
    folder: Path
    """Of the stage."""


@dataclass
class _Pass:
    """Runs while they train together."""

    session: Session
    interrupts: Interrupts
    ended: Callable[[int, str], None]
    _opened: dict[str, TrainingData] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def train(self, runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
        """All of them, to their end."""
        live: list[tuple[int, Begun]] = []
        for number, (folder, arguments) in enumerate(runs):
            begun = self._tried(number, lambda f=folder, a=arguments: self._begin(f, a, len(runs)))  # type: ignore[misc]
            if isinstance(begun, Begun):
                live.append((number, begun))
            elif begun is not None:
                self.ended(number, "")
        if not live:
            return
        with reproducible(live[0][1].opened.data.device, live[0][1].settings.deterministic), self.interrupts.watch():
            while live:
                live = self._next_stage(live)

    def _begin(self, folder: Path, arguments: Mapping[str, Any], count: int) -> Begun | Run:
        settings, options = checked(**arguments)

        def prepare(before: dict[str, Any]) -> TrainingData:
            """Runs that go on under the same conditions share what they read, too."""
            if not before:
                return self.session.prepare(settings, options, before)
            key = json.dumps({name: value for name, value in before.items() if name != "options"}, sort_keys=True)
            if key not in self._opened:
                self._opened[key] = self.session.prepare(settings, options, before)
            known = self._opened[key]
            return replace(known, data=replace(known.data, seed=settings.seed), resolved=dict(known.resolved))

        begun = begin_run(folder, settings, options, self.session, prepare)
        if isinstance(begun, Begun):
            begun.log.shown_every = SHOWN_EVERY * count  # so often in all
        return begun

    def _tried(self, number: int, do: Callable[[], Any]) -> Any:
        """What a step of one run gives; None where it failed, which ends this run alone."""
        try:
            return do()
        except WriteError:  # no other run could be written either
            raise
        except KdcacheError as error:
            self.ended(number, str(error))
            return None

    def _next_stage(self, live: Sequence[tuple[int, Begun]]) -> list[tuple[int, Begun]]:
        """Train the stage that each run is at; those that have not ended."""
        at: list[_Run] = []
        for number, begun in live:
            if self.interrupts.received is not None:  # every stage is saved by now
                self.interrupts.leave()
            following = self._tried(number, lambda b=begun: b.next() or conclude(b))  # type: ignore[misc]
            if isinstance(following, Run):
                self.ended(number, "")
            elif following is not None:
                at.append(_Run(number, begun, *following))
        first: dict[Path, _Run] = {}
        later: list[_Run] = []  # whose stage another one trains for all
        for run in at:
            kept = self.session.kept(run.stage, run.begun.opened, run.begun.settings.eval_every)
            (later.append(run) if kept in first else first.setdefault(kept or run.folder, run))
        passes = defaultdict[str, list[_Run]](list)
        going = [run for run in first.values() if self._restored(run)]
        for run in first.values():
            if run not in going:
                passes[run.stage.name].append(run)
        for of_stage in passes.values():
            going += self._fit(of_stage)
        for run in later:
            going += [run] if self._restored(run) else self._alone(run)
        return sorted(((run.number, run.begun) for run in going), key=lambda each: each[0])

    def _restored(self, run: _Run) -> bool:
        """Whether its stage is trained already, in its own folder or by another run."""
        begun = run.begun
        self.session.restore_shared_stage(run.stage, begun.opened, run.folder, begun.settings.eval_every)
        summary = trained(run.stage, run.folder)
        if summary is not None:
            begun.done(run.stage, summary)
        return summary is not None

    def _fit(self, runs: Sequence[_Run]) -> list[_Run]:
        """One stage of several runs, together as far as they can; those that have not failed."""
        why = "" if len(runs) > 1 else "one"
        if not why and runs[0].begun.opened.resolved["precision"] == "fp16":
            why = "fp16 scales each loss by itself"
        why = why or why_not_together([run.stage for run in runs])
        if why:
            if len(runs) > 1 and why not in self._said:
                self._said.add(why)
                logger.info("%s: trained one after the other: %s", runs[0].stage.name, why)
            return [done for run in runs for done in self._alone(run)]
        heads: dict[tuple[int, int], list[tuple[_Run, Head]]] = defaultdict(list)
        for run in runs:
            b, s = run.begun, run.begun.settings
            made = self._tried(
                run.number,
                lambda r=run, b=b, s=s: begin(  # type: ignore[misc]
                    r.stage, b.opened.data, r.folder, b.log, self.interrupts, s.save_every, False, s.eval_every
                ),
            )
            if made is not None:
                heads[made.state.epoch, made.state.step].append((run, head_of(made)))
        return [done for at_one_place in heads.values() for done in self._fit_heads(at_one_place)]

    def _fit_heads(self, heads: Sequence[tuple[_Run, Head]]) -> list[_Run]:
        if len(heads) == 1:
            return self._alone(heads[0][0])
        too_large = False
        try:
            fit_together([head for _, head in heads])
        except TooLarge:
            too_large = True
        except WriteError:
            raise
        except KdcacheError as error:
            for run, _ in heads:
                self.ended(run.number, str(error))
            return []
        if too_large:
            half = len(heads) // 2
            logger.info("%s: %d at once fill the memory; halved", heads[0][0].stage.name, len(heads))
            return self._fit_heads(heads[:half]) + self._fit_heads(heads[half:])
        going = []
        for run, head in heads:
            if head.problem is not None:
                self.ended(run.number, str(head.problem))
                continue
            run.begun.done(run.stage, end(head.run))
            self.session.share_stage(run.stage, run.begun.opened, run.folder, run.begun.settings.eval_every)
            going.append(run)
        return going

    def _alone(self, run: _Run) -> list[_Run]:
        b, s = run.begun, run.begun.settings
        scale = b.opened.resolved["precision"] == "fp16"

        def fit() -> list[_Run]:
            made = fit_stage(
                run.stage, b.opened.data, run.folder, b.log, self.interrupts, s.save_every, scale, s.eval_every
            )
            self.session.share_stage(run.stage, b.opened, run.folder, s.eval_every)
            b.done(run.stage, made)
            return [run]

        return self._tried(run.number, fit) or []


def train_together(
    runs: Sequence[tuple[Path, Mapping[str, Any]]], session: Session, ended: Callable[[int, str], None]
) -> None:
    """Train runs of which ``alike`` says the same, in one pass as far as they can; see ``train``.

    Args:
        runs: folder and arguments of ``train`` of each.
        session: what they share.
        ended: told of each run, by its number, when it has ended, with what went wrong in one sentence or an empty
            text.

    Raises:
        KeyboardInterrupt, SystemExit: interrupted by a signal; the same call goes on.
    """
    _Pass(session, Interrupts(), ended).train(runs)
