"""Where commands are forked from: everything imported, nothing computed, materials made, references taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torture import faults, isolation
from torture.cases import SURVIVED, Outcome
from torture.jobs import JOBS, Job, Result, differences, result_of
from torture.materials import make, register


def warm() -> None:
    """Import what commands import late."""
    import matplotlib.pyplot  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import kdcache.report.ablation
    import kdcache.runs.fit
    import kdcache.runs.train
    import kdcache.store.decoding  # noqa: F401

    register()
    torch.set_num_threads(1)


class Server:
    """Runs jobs, disturbed or not, below one folder."""

    def __init__(self, folder: Path) -> None:
        faults.preload()
        warm()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.materials = folder / "materials"
        made = isolation.alone(self._made, isolation.Limits(seconds=200))
        if made.verdict != SURVIVED:
            raise RuntimeError(made.how)
        if not (self.materials / "extracted" / "made").exists():
            shutil.rmtree(self.materials / "extracted", ignore_errors=True)
            JOBS["extract"].prepare(self.materials, self.materials / "extracted")
            if wrong := self.finish(JOBS["extract"], self.materials / "extracted"):
                raise RuntimeError(wrong)
            (self.materials / "extracted" / "made").touch()

    def _made(self) -> Outcome:
        make(self.materials)
        return Outcome(0, "materials", SURVIVED)

    def command(
        self, job: Job, folder: Path, number: int, fault: faults.Fault | None = None, kill_after: float | None = None
    ) -> faults.Ended:
        """One of a job's commands, in a fork."""
        arguments = job.commands(self.materials, folder)[number]
        log = self.folder / "command.log"  # not on a small file system, which may be full
        return faults.run(
            arguments, folder, log, fault, kill_after, setting=job.setting, workers=job.spawns and fault is not None
        )

    def reference(self, job: Job) -> tuple[Result, int, float]:
        """Of an undisturbed run: the result, the calls of its first command that change files, and its seconds."""
        path = self.folder / "references" / f"{job.name}.json"
        if not path.exists():
            folder = self.folder / "references" / job.name
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(exist_ok=True)
            job.prepare(self.materials, folder)
            first = self.command(job, folder, 0)
            self.finish(job, folder, first=1)
            if first.wrong or first.status not in job.accepted:
                raise RuntimeError(f"{job.name} fails undisturbed: {first.output[-2000:]}")
            result = result_of(job, folder)
            path.write_text(json.dumps([result, first.calls, first.seconds]))
        result, calls, seconds = json.loads(path.read_text())
        return result, calls, seconds

    def finish(self, job: Job, folder: Path, first: int = 0) -> str:
        """Run a job's commands to their end; what went wrong, if anything."""
        for number in range(first, len(job.commands(self.materials, folder))):
            ended = self.command(job, folder, number)
            if ended.wrong or ended.status not in job.accepted:
                return ended.wrong or f"ended with status {ended.status}: {last_line(ended.output)}"
        return ""

    def judge(self, job: Job, folder: Path) -> str:
        """How a job's result differs from the reference, if at all."""
        return differences(result_of(job, folder), self.reference(job)[0])


def last_line(output: str) -> str:
    """What a command said last."""
    return next((text for text in reversed(output.splitlines()) if text.strip()), "nothing said")
