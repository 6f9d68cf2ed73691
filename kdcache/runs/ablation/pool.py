"""Trainings one after the other in this process, or in several spawned ones that share its cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from kdcache.errors import KdcacheError
from kdcache.runtime import cores, without_main


@dataclass(frozen=True)
class Job:
    """One training, ``train(**arguments, out=folder)``, and what to call it."""

    label: str
    folder: Path
    arguments: dict[str, Any]


Listener = Callable[[Job, str], None]
"""Told of each job that has ended, with what went wrong in one sentence, or an empty text."""


def run_jobs(jobs: Sequence[Job], workers: int, stages: Path, listen: Listener, say: Callable[[str], None]) -> None:
    """Run all jobs; what ``listen`` raises ends it, and interrupted trainings keep their checkpoints.

    Each process holds the cached stream in memory from one job to the next, and takes over from ``stages`` what
    another run has trained there.

    Args:
        jobs: in this order; each must have a folder of its own.
        workers: processes, each with an equal share of the cores as torch threads; 1 stays in this one.
        stages: folder of trained stages that runs share.
        listen: told of every job that has ended.
        say: takes the sentences of the runs, each once.

    Raises:
        KdcacheError: a worker process died.
    """
    if workers > 1 and len(jobs) > 1:
        _run_processes(jobs, min(workers, len(jobs)), stages, listen)
        return
    session = _session(stages, say)
    for job in jobs:
        listen(job, _train(job, session))


def _session(stages: Path, say: Callable[[str], None]) -> Any:
    from kdcache.runs.train import Session

    said: set[str] = set()

    def once(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return Session(stages, once, bars=False)


def _train(job: Job, session: Any) -> str:
    """Train, or find it finished with the same settings; what went wrong."""
    from kdcache.runs.run import METRICS
    from kdcache.runs.train import Session, train

    if (job.folder / METRICS).exists():
        session = Session(say=lambda _: None)
    try:
        train(**job.arguments, out=job.folder, session=session)
    except KdcacheError as error:
        return str(error)
    return ""


def _worker(pipe: Connection, stages: Path, threads: int, talks: bool) -> None:
    """A worker process: take jobs from the pipe until it closes, send back what went wrong."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C reaches the parent alone, which then ends this process with SIGTERM
    import torch

    from kdcache.engine.log import say

    torch.set_num_threads(threads)
    session = _session(stages, say if talks else lambda _: None)
    try:
        while True:
            pipe.send(_train(pipe.recv(), session))
    except (EOFError, ConnectionError):  # the parent has closed the pipe, or is dead
        return


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, stages: Path, threads: int, talks: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_worker, args=(child, stages, threads, talks), daemon=True)
        with without_main():
            self.process.start()
        child.close()
        self.job: Job

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(ConnectionError):  # it has just died, which its pipe will tell
            self.pipe.send(job)

    def end(self) -> None:
        """Let it finish what it is saving, and go."""
        self.pipe.close()
        self.process.join()


def _run_processes(jobs: Sequence[Job], workers: int, stages: Path, listen: Listener) -> None:
    queue = deque(jobs)
    threads = max(1, cores() // workers)
    crew: list[_Worker] = []
    with _terminable():
        try:
            for number in range(workers):
                crew.append(_Worker(stages, threads, talks=number == 0))
                crew[-1].give(queue.popleft())
            while crew:
                ready = wait([worker.pipe for worker in crew])
                for worker in [w for w in crew if w.pipe in ready]:
                    try:
                        problem = worker.pipe.recv()
                    except (EOFError, ConnectionError):
                        worker.process.join()
                        raise KdcacheError(_death(worker)) from None
                    listen(worker.job, problem)
                    if queue:
                        worker.give(queue.popleft())
                    else:
                        worker.end()
                        crew.remove(worker)
        finally:
            for worker in crew:
                worker.process.terminate()
            for worker in crew:
                worker.end()


def _death(worker: _Worker) -> str:
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return (
        f"The process that trained {worker.job.label} died ({how}): check the free memory or take fewer workers; "
        "the same command goes on."
    )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM ends this process as an exception does, so that it can end its workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
