"""No space left on the device, from the k-th system call on that takes some; and on real file systems of few bytes."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torture.cases import FAILED, SILENT, SKIPPED, SURVIVED, Outcome, Progress, Table, generator
from torture.faults import FULL, REFUSE, Ended, Fault
from torture.jobs import JOBS, Job
from torture.server import Server, last_line

COUNT = 800
ABOUT = "The disk fills while a command writes: one sentence, nothing half-written, and then the same command goes on."
SHARE = {
    "extract": 19, "extract-3": 8, "repair": 12, "copy": 7, "export npy": 4, "export lmdb": 4, "export webdataset": 4,
    "train": 21, "fit": 13, "ablate": 8,
}  # fmt: skip
"""Cases of a hundred."""
ERRORS = {errno.ENOSPC: 8, errno.EDQUOT: 1, errno.EIO: 1}
_MOUNTED = 0.1  # share of the cases on a file system of its own

_SENTENCE = re.compile(r"^(Error|Warning|failed)\b|No space left|Disk quota|Input/output error|space", re.MULTILINE)


def run(count: int, seed: int, seconds: float, folder: Path) -> Table:
    """See ``torture.cases``."""
    server = Server(folder)
    progress = Progress("disk", count, seed, folder)
    for number in progress.until(seconds):
        progress.add(case(server, seed, number))
    return progress.table


def case(server: Server, seed: int, number: int) -> Outcome:
    """One job on a disk that is full from some call on, then with space again."""
    rng = generator("disk", seed, number)
    job = JOBS[rng.choices(list(SHARE), list(SHARE.values()))[0]]
    _, calls, _ = server.reference(job)
    folder = server.folder / "case"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    if rng.random() < _MOUNTED:
        kind, ended, wrong = f"{job.name}, on a small file system", *_mounted(server, job, folder, rng)
    else:
        job.prepare(server.materials, folder)
        code = rng.choices(list(ERRORS), list(ERRORS.values()))[0]
        fault = Fault(rng.randint(1, calls), rng.choice((FULL, FULL, REFUSE)), code)
        ended = server.command(job, folder, 0, fault)
        wrong = _unlike_a_sentence(job, ended)
        kind = f"{job.name}, {'full from a call on' if fault.action == FULL else 'one call refused'}"
    if ended is None:
        return Outcome(number, kind, SKIPPED, wrong)
    half = sorted(path.name for path in folder.rglob(".*.partial"))
    if half and not wrong:
        wrong = f"left half-written: {', '.join(half)}"
    wrong = wrong or server.finish(job, folder)
    changed = "" if wrong else server.judge(job, folder)
    verdict = FAILED if wrong else SILENT if changed else SURVIVED
    how = wrong or changed or ("unhurt" if ended.status in job.accepted else "one sentence")
    shutil.rmtree(folder, ignore_errors=True) if verdict == SURVIVED else None
    return Outcome(number, kind, verdict, how, time.perf_counter() - began, ended.peak)


def _unlike_a_sentence(job: Job, ended: Ended) -> str:
    """What is wrong with how a command on a full disk ended; empty where nothing is."""
    if ended.wrong or ended.status in job.accepted:
        return ended.wrong
    if ended.status not in (1, 3):
        return f"ended with status {ended.status}: {last_line(ended.output)}"
    return "" if _SENTENCE.search(ended.output) else f"does not say why: {last_line(ended.output)}"


def _mounted(server: Server, job: Job, folder: Path, rng: random.Random) -> tuple[Ended | None, str]:
    """The command on a file system that is too small for it, the files then moved to one that is not."""
    small = server.folder / "small"
    with _file_system(small, rng.randint(16, 400) * 1024) as mounted:
        if not mounted:
            return None, "mounting needs rights that are lacking here"
        inside = small / "case"
        try:
            job.prepare(server.materials, inside)
        except OSError:
            return None, "the materials do not fit"
        ended = server.command(job, inside, 0)
        shutil.copytree(inside, folder)
    return ended, _unlike_a_sentence(job, ended)


@contextmanager
def _file_system(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of so many bytes; False where it may not be mounted."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    if made.returncode or os.geteuid():
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", folder], check=True)
