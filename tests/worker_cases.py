"""What the workers of ``test_workers.py`` do: a module that a worker process imports quickly."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError
from kdcache.runs.ablation.pool import TrainingWork
from kdcache.workers import StopFlag

Emit = Callable[[Any], None]


@dataclass(frozen=True)
class Scripted:
    """Does what each unit says: ``(verb, argument)``. Emits (worker, number of the unit in this worker, argument)."""

    def start(self, worker: int) -> Callable[[tuple[str, Any], Emit, StopFlag], None]:
        done: list[str] = []

        def run_unit(unit: tuple[str, Any], emit: Emit, stop: StopFlag) -> None:
            verb, argument = unit
            emit((worker, len(done), argument))
            done.append(verb)
            getattr(self, verb)(argument, stop)

        return run_unit

    def work(self, _: Any, stop: StopFlag) -> None:
        """Nothing more."""

    def kill(self, _: Any, stop: StopFlag) -> None:
        """Die as by the out-of-memory killer."""
        os.kill(os.getpid(), signal.SIGKILL)

    def refuse(self, argument: Any, stop: StopFlag) -> None:
        """An error that ends the run."""
        raise OptionError(f"{argument} is refused.")

    def end(self, _: Any, stop: StopFlag) -> None:
        """An error that is not the package's; of all errors one that a closed pipe raises, too."""
        raise EOFError("the file has ended")

    def wait(self, folder: Path, stop: StopFlag) -> None:
        """Look at the flag without pause until it is set."""
        (folder / f"{os.getpid()}").touch()
        until = time.monotonic() + 60
        while not stop.is_set() and time.monotonic() < until:
            pass

    def save(self, folder: Path, stop: StopFlag) -> None:
        """Go on until SIGTERM, then save."""
        from kdcache.workers import Interrupts

        interrupts = Interrupts()
        with interrupts.watch():
            (folder / f"{os.getpid()}").touch()
            until = time.monotonic() + 60
            while interrupts.received is None and time.monotonic() < until:
                time.sleep(0.005)
        time.sleep(0.1)
        (folder / f"{os.getpid()}-saved").touch()
        interrupts.leave()


class Fatal:
    """Work that kills its process while it starts."""

    def start(self, worker: int) -> Callable[[Any, Emit, StopFlag], None]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Observant:
    """Emits what was so when the work was unpickled: the process group, the signals, whether torch was loaded."""

    def __setstate__(self, state: Any) -> None:
        self.seen = (
            os.getpgrp() == os.getpid(),
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            signal.getsignal(signal.SIGTERM) == signal.SIG_IGN,
            "torch" in sys.modules,
        )

    def __getstate__(self) -> dict[str, bool]:
        return {"stateful": True}

    def start(self, worker: int) -> Callable[[Any, Emit, StopFlag], None]:
        return lambda unit, emit, stop: emit(self.seen)


class FatalTraining(TrainingWork):
    """Kills its process in a training or, without a number of threads, before the first."""

    def start(self, worker: int) -> Callable[[Any, Emit, StopFlag], None]:
        if self.threads is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return lambda job, emit, stop: os.kill(os.getpid(), signal.SIGKILL)
