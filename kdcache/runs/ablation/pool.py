"""Trainings one after the other in this process, or in several spawned ones that share its cores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kdcache.errors import KdcacheError
from kdcache.log import EachOnce, logger, quiet
from kdcache.methods.registry import check_portable, origins, register
from kdcache.runtime import cores
from kdcache.workers import Processes, Serial, StopFlag


@dataclass(frozen=True)
class Job:
    """One training, ``train(**arguments, out=folder)``, and what to call it."""

    label: str
    folder: Path
    arguments: dict[str, Any]
    shared: str = ""
    """Subfolder of the shared stages, where runs on other data must not share them."""


@dataclass(frozen=True)
class JobEnded:
    """A job has ended: ``problem`` is what went wrong in one sentence, or empty."""

    job: Job
    problem: str


@dataclass(frozen=True)
class TrainingWork:
    """What every worker does: a session keeps the cached stream in memory from one job to the next.

    ``threads``: for torch, None leaves them as they are. ``processes`` share the memory. What runs log alike is logged
    once, by the first worker.
    """

    stages: Path
    threads: int | None = None
    processes: int = 1
    methods: Mapping[str, str] = field(default_factory=dict)
    """Methods of one's own that another process has to import, by name."""

    def start(self, worker: int) -> Callable[[Job, Callable[[JobEnded], None], StopFlag], None]:
        """See ``kdcache.workers.Work``."""
        import torch

        from kdcache.runs.session import Session

        for name, where in self.methods.items():
            register(name, where)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        session, once = Session(self.stages, bars=False, processes=self.processes), EachOnce()
        if worker > 0:
            logger.setLevel(max(logger.level, logging.WARNING))

        def run(job: Job, emit: Callable[[JobEnded], None], stop: StopFlag) -> None:
            with once:
                session.stages = self.stages / job.shared
                emit(JobEnded(job, _train(job, session)))

        return run


Listener = Callable[[Job, str], None]
"""Told of each job that has ended, with what went wrong in one sentence, or an empty text."""


def run_jobs(jobs: Sequence[Job], workers: int, stages: Path, listen: Listener) -> None:
    """Run all jobs; what ``listen`` raises ends it, and interrupted trainings keep their checkpoints.

    Each process holds the cached stream in memory from one job to the next, and takes over from ``stages`` what
    another run has trained there.

    Args:
        jobs: in this order; each must have a folder of its own.
        workers: processes, each with an equal share of the cores as torch threads; 1 stays in this one.
        stages: folder of trained stages that runs share.
        listen: told of every job that has ended.

    Raises:
        KdcacheError: a worker process died.
    """

    def on_event(event: JobEnded) -> None:
        listen(event.job, event.problem)

    workers = min(workers, len(jobs))
    if workers > 1:
        for name in {job.arguments["method"] for job in jobs}:
            check_portable(name)
        work = TrainingWork(stages, max(1, cores() // workers), workers, origins())
        Processes(work, workers, _on_death, interruptible=True).run(jobs, on_event, StopFlag())
    else:
        Serial(TrainingWork(stages)).run(jobs, on_event, StopFlag())


def _train(job: Job, session: Any) -> str:
    """Train, or find it finished with the same settings; what went wrong."""
    from kdcache.runs.run import METRICS
    from kdcache.runs.train import train

    try:
        with quiet() if (job.folder / METRICS).exists() else nullcontext():
            train(**job.arguments, out=job.folder, session=session)
    except KdcacheError as error:
        return str(error)
    return ""


def _on_death(job: Job | None, events: Sequence[JobEnded], how: str) -> NoReturn:
    """A death is of all: it is most often the memory, which the next process would lack, too."""
    what = f"The process that trained {job.label}" if job else "A process"
    when = "" if job else " before its first training"
    raise KdcacheError(
        f"{what} died ({how}){when}: check the free memory or take fewer workers; the same command goes on."
    )
