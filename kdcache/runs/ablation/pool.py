"""Trainings one after the other in this process, or in several spawned ones that share its cores."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kdcache.cluster.options import Cluster
from kdcache.cluster.ray_actors import RayActors, connected
from kdcache.cluster.shared import await_shared, shared_folder
from kdcache.errors import KdcacheError, OptionError, WriteError
from kdcache.log import EachOnce, logger, quiet
from kdcache.methods.registry import check_portable, origins, register
from kdcache.runtime import threads_of_each
from kdcache.workers import Processes, Serial, StopFlag


@dataclass(frozen=True)
class Job:
    """One training, ``train(**arguments, out=folder)``, and what to call it."""

    label: str
    folder: Path
    arguments: dict[str, Any]
    shared: str = ""
    """Subfolder of the shared stages, where runs on other data must not share them."""


Jobs = tuple[Job, ...]
"""One, or several that train together."""


@dataclass(frozen=True)
class Pool:
    """Where jobs are run, and how many at once."""

    workers: int = 1
    """Processes, each with an equal share of the cores as torch threads; 1: this one. On a cluster: the most."""
    together: int = 1
    """How many that differ in numbers alone train in one pass at most."""
    cluster: Cluster | None = None
    device: str = "auto"
    """What the jobs compute on, as they say themselves."""


THIS_PROCESS = Pool()


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
    shared: tuple[Path, ...] = ()
    """Of workers on other machines: what they must see."""

    def start(self, worker: int) -> Callable[[Jobs, Callable[[JobEnded], None], StopFlag], None]:
        """See ``kdcache.workers.Work``."""
        import torch

        from kdcache.runs.session import Session

        for path in self.shared:
            await_shared(path)
        for name, where in self.methods.items():
            register(name, where)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        session, once = Session(self.stages, bars=False, processes=self.processes), EachOnce()
        if worker > 0:
            logger.setLevel(max(logger.level, logging.WARNING))

        def run(jobs: Jobs, emit: Callable[[JobEnded], None], stop: StopFlag) -> None:
            with once:
                session.stages = self.stages / jobs[0].shared
                if len(jobs) == 1:
                    emit(JobEnded(jobs[0], _train(jobs[0], session)))
                else:
                    from kdcache.runs.together import train_together

                    calls = [(job.folder, job.arguments) for job in jobs]
                    train_together(calls, session, lambda number, problem: emit(JobEnded(jobs[number], problem)))

        return run


Listener = Callable[[Job, str], None]
"""Told of each job that has ended, with what went wrong in one sentence, or an empty text."""


def run_jobs(jobs: Sequence[Job], pool: Pool, stages: Path, listen: Listener) -> None:
    """Run all jobs; what ``listen`` raises ends it, and interrupted trainings keep their checkpoints.

    Each process holds the cached stream in memory from one job to the next, and takes over from ``stages`` what
    another run has trained there.

    Args:
        jobs: in this order; each must have a folder of its own.
        pool: where, and how many at once.
        stages: folder of trained stages that runs share.
        listen: told of every job that has ended.

    Raises:
        KdcacheError: a worker process died.
    """

    def on_event(event: JobEnded) -> None:
        listen(event.job, event.problem)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("torchrun's processes train one run together: start a comparison without it, with workers=N.")
    units = in_passes(jobs, pool.together, pool.workers)
    workers, cluster = min(pool.workers, len(units)), pool.cluster
    if workers == 0 or (workers == 1 and cluster is None):
        Serial(TrainingWork(stages)).run(units, on_event, StopFlag())
        return
    for name in {job.arguments["method"] for job in jobs}:
        check_portable(name)
    if cluster is None:
        work = TrainingWork(stages, threads_of_each(workers), workers, origins())
        Processes(work, workers, _on_death, interruptible=True).run(units, on_event, StopFlag())
        return
    with shared_folder(stages) as mark, connected(cluster, pool.device) as connection:
        caches = sorted({Path(job.arguments["shards"]) for job in jobs})
        there = (mark, *(path for path in caches if path.exists()))  # one missing here too is an error of its jobs
        work = TrainingWork(stages, cluster.threads, connection.sharing, origins(), there)
        RayActors(connection, work, workers, _on_death, _left, interruptible=True).run(units, on_event, StopFlag())


def _left(jobs: Jobs | None, events: Sequence[JobEnded]) -> list[Jobs]:
    """Those of a machine that has gone which have not ended; they go on from their checkpoints."""
    ended = {event.job.folder for event in events}
    left = tuple(job for job in jobs or () if job.folder not in ended)
    return [left] if left else []


def in_passes(jobs: Sequence[Job], together: int, workers: int = 1) -> list[Jobs]:
    """Jobs that train together, up to so many at once, where the first of them stands; the others alone.

    The largest passes are halved until there is one for every worker.
    """
    if together < 2:
        return [(job,) for job in jobs]
    from kdcache.runs.together import alike

    units: dict[Hashable, list[Job]] = {}
    for number, job in enumerate(jobs):
        like = alike(job.folder, job.arguments)
        units.setdefault(number if like is None else (job.shared, like), []).append(job)
    passes = [tuple(unit[at : at + together]) for unit in units.values() for at in range(0, len(unit), together)]
    while 0 < len(passes) < min(workers, len(jobs)):
        at = max(range(len(passes)), key=lambda number: len(passes[number]))
        half = (len(passes[at]) + 1) // 2
        passes[at : at + 1] = [passes[at][:half], passes[at][half:]]
    return passes


def _train(job: Job, session: Any) -> str:
    """Train, or find it finished with the same settings; what went wrong."""
    from kdcache.runs.folder import METRICS
    from kdcache.runs.train import train

    try:
        with quiet() if (job.folder / METRICS).exists() else nullcontext():
            train(**job.arguments, out=job.folder, session=session)
    except WriteError:  # no other run could be written either
        raise
    except KdcacheError as error:
        return str(error)
    return ""


def _on_death(jobs: Jobs | None, events: Sequence[JobEnded], how: str) -> NoReturn:
    """A death is of all: it is most often the memory, which the next process would lack, too."""
    what = f"The process that trained {jobs[0].label}" if jobs else "A process"
    when = "" if jobs else " before its first training"
    raise KdcacheError(
        f"{what} died ({how}){when}: check the free memory or take fewer workers; the same command goes on."
    )
