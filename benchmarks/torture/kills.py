"""kill -9 at random moments, and before, after and in the middle of system calls that change files."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from torture.cases import FAILED, SILENT, SURVIVED, Outcome, Progress, Table, generator
from torture.faults import KILLS, Fault
from torture.jobs import JOBS
from torture.server import Server, last_line

COUNT = 1000
ABOUT = "A command is killed up to three times; then it must end as if nothing had been."
SHARE = {
    "extract": 20, "extract-3": 16, "extract-spawned": 1, "repair": 11, "copy": 3, "export npy": 2, "export lmdb": 2,
    "export webdataset": 2, "train": 24, "fit": 11, "ablate": 8,
}  # fmt: skip
"""Cases of a hundred."""


def run(count: int, seed: int, seconds: float, folder: Path) -> Table:
    """See ``torture.cases``."""
    server = Server(folder)
    progress = Progress("kills", count, seed, folder)
    for number in progress.until(seconds):
        progress.add(case(server, seed, number))
    progress.table.notes["kills"] = sum(outcome.times for outcome in progress.table.outcomes)
    return progress.table


def case(server: Server, seed: int, number: int) -> Outcome:
    """One job, killed up to three times in a row, then repeated to its end."""
    rng = generator("kills", seed, number)
    job = JOBS[rng.choices(list(SHARE), list(SHARE.values()))[0]]
    _, calls, seconds = server.reference(job)
    folder = server.folder / "case"
    shutil.rmtree(folder, ignore_errors=True)
    began, kills, peak, moments = time.perf_counter(), 0, 0, set()
    job.prepare(server.materials, folder)
    wrong = ""
    for _ in range(rng.choice((1, 1, 2, 3))):
        moment = rng.choice(("at random", "before", "after", "in the middle of"))
        if moment == "at random":
            ended = server.command(job, folder, 0, kill_after=rng.uniform(0.05, 1) * seconds)
        else:
            group = job.name != "extract-3" or rng.random() < 0.5
            fault = Fault(rng.randint(1, calls), KILLS[moment], group=group)
            ended = server.command(job, folder, 0, fault)
        moments.add("at random" if moment == "at random" else "at calls")
        peak = max(peak, ended.peak)
        kills += ended.killed
        wrong = ended.wrong
        if not ended.killed:
            if not wrong and ended.status not in job.accepted:
                wrong = f"a killed command repeated: status {ended.status}: {last_line(ended.output)}"
            break
    published = {path.name: path.read_bytes() for path in folder.rglob("shard-*.h5")} if job.name != "repair" else {}
    wrong = wrong or server.finish(job, folder)
    lost = [name for name, data in published.items() if (folder / "out" / name).read_bytes() != data]
    changed = f"shards changed: {lost}" if lost else "" if wrong else server.judge(job, folder)
    kind = f"{job.name}, {' and '.join(sorted(moments))}"
    verdict = FAILED if wrong else SILENT if changed else SURVIVED
    how = wrong or changed or "equal"
    taken = time.perf_counter() - began
    if verdict == SURVIVED:
        shutil.rmtree(folder)
    return Outcome(number, kind, verdict, how, taken, peak, kills)
