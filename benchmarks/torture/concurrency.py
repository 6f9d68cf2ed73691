"""Commands that work on one cache at the same time."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture import faults
from torture.cases import FAILED, SILENT, SURVIVED, Outcome, Progress, Table, generator
from torture.jobs import JOBS, STREAMS, Job, Result, differences, extract, result_of, run_result, small_shards
from torture.server import Server, last_line

COUNT = 120
ABOUT = "Commands work on one cache at once; afterwards it must be that of one command after the other."
LATEST = 2.0  # seconds after the first at which the last begins, at most


@dataclass(frozen=True)
class Meeting:
    """Commands that meet on the cache ``folder/out``."""

    share: int
    commands: Callable[[Path, Path], list[list[str]]]
    prepare: Callable[[Server, Path], None] = lambda server, folder: folder.mkdir()
    afterwards: Callable[[Path, Path], list[list[str]]] = lambda materials, folder: []


def _damaged(server: Server, folder: Path) -> None:
    JOBS["repair"].prepare(server.materials, folder)


def _featured(server: Server, folder: Path) -> None:
    """A cache with features, to which frames are added while a head is trained."""
    kept = server.folder / "featured"
    if not kept.exists():
        kept.mkdir()
        (call,) = extract(server.materials, kept, STREAMS[1:], 1)
        faults.run(call, kept, kept.with_suffix(".log"), setting=small_shards)
    shutil.copytree(kept, folder)


def _two(materials: Path, folder: Path) -> list[list[str]]:
    return 2 * extract(materials, folder, STREAMS, 1)


def _one_stream_each(materials: Path, folder: Path) -> list[list[str]]:
    return [call for stream in STREAMS for call in extract(materials, folder, [stream], 1)]


def _and_repair(materials: Path, folder: Path) -> list[list[str]]:
    return [*extract(materials, folder, STREAMS, 1), ["verify", str(folder / "out"), "--repair"]]


def _and_train(materials: Path, folder: Path) -> list[list[str]]:
    return [*extract(materials, folder, STREAMS, 1), train_call(folder)]


def train_call(folder: Path) -> list[str]:
    """A classifier on the features of ``folder/out``."""
    where = ["--shards", str(folder / "out"), "--out", str(folder / "run" / "out"), "--device", "cpu"]
    return ["train", "recognition", *where, "--stream", STREAMS[1], "--set", "epochs=4", "--set", "batch_size=4"]


def _parts(materials: Path, folder: Path) -> list[list[str]]:
    (call,) = extract(materials, folder, STREAMS, 1)
    return [[*call, "--part", f"{part}/8"] for part in range(1, 9)]


def _again(materials: Path, folder: Path) -> list[list[str]]:
    return extract(materials, folder, STREAMS, 1)


MEETINGS = {
    "two extracts": Meeting(25, _two),
    "two extracts of a stream each": Meeting(15, _one_stream_each),
    "extract and verify --repair": Meeting(25, _and_repair, _damaged, _again),
    "extract and train": Meeting(15, _and_train, _featured),
    "extract in 8 parts": Meeting(20, _parts),
}


def run(count: int, seed: int, seconds: float, folder: Path) -> Table:
    """See ``torture.cases``."""
    server = Server(folder)
    progress = Progress("concurrency", count, seed, folder)
    for number in progress.until(seconds):
        progress.add(case(server, seed, number))
    return progress.table


def case(server: Server, seed: int, number: int) -> Outcome:
    """One meeting, its commands begun at random moments."""
    rng = generator("concurrency", seed, number)
    (name,) = rng.choices(list(MEETINGS), [meeting.share for meeting in MEETINGS.values()])
    meeting, folder = MEETINGS[name], server.folder / "case"
    shutil.rmtree(folder, ignore_errors=True)
    meeting.prepare(server, folder)
    began = time.perf_counter()
    ended, wrong = _meet(server, meeting, folder, rng)
    for call in [] if wrong else meeting.afterwards(server.materials, folder):
        ended.append(faults.run(call, folder, folder.with_suffix(".log"), setting=small_shards))
        wrong = _wrong(ended[-1])
    changed = "" if wrong else differences(result_of(JOBS["extract"], folder), server.reference(JOBS["extract"])[0])
    if not wrong and not changed and (folder / "run").exists():
        changed = differences(_run_result(folder), _trained_alone(server))
    verdict = FAILED if wrong else SILENT if changed else SURVIVED
    taken = time.perf_counter() - began
    if verdict == SURVIVED:
        shutil.rmtree(folder)
    peak = max(one.peak for one in ended)
    return Outcome(number, name, verdict, wrong or changed or "equal", taken, peak)


def _meet(server: Server, meeting: Meeting, folder: Path, rng: random.Random) -> tuple[list[faults.Ended], str]:
    """How the commands ended, and what is wrong with one of them."""
    commands = meeting.commands(server.materials, folder)
    latest = rng.choice((0.0, 0.2, LATEST))
    delays = [rng.uniform(0, latest) for _ in commands]
    ended = faults.together(commands, delays, folder.with_suffix(".log"), small_shards)
    return ended, next((wrong for one in ended if (wrong := _wrong(one))), "")


def _wrong(ended: faults.Ended) -> str:
    if ended.wrong:
        return ended.wrong
    return "" if ended.status in (0, 3) else f"ended with status {ended.status}: {last_line(ended.output)}"


def _run_result(folder: Path) -> Result:
    job = Job("train", lambda materials, place: [], lambda place: run_result(place / "run"))
    return {k: v for k, v in result_of(job, folder).items() if k not in ("config.toml", "recipes.json")}


def _trained_alone(server: Server) -> Result:
    """The training with nobody else on the cache."""
    folder = server.folder / "alone"
    if not folder.exists():
        _featured(server, folder)
        faults.run(train_call(folder), folder, folder.with_suffix(".log"))
    return _run_result(folder)
