"""Extraction that is killed, stopped or robbed of its workers: nothing half-written, nothing lost, nothing twice."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import kdcache
from kdcache.cli import main
from kdcache.demo.scene import make_dataset
from kdcache.errors import KdcacheError
from kdcache.extraction import local as local_module
from kdcache.extraction import run as run_module
from kdcache.extraction.deaths import after_death
from kdcache.extraction.decoding import Prepared
from kdcache.extraction.local import ExtractionWork
from kdcache.extraction.plan import Task, WorkUnit, cut_again
from kdcache.extraction.worker import Computed, Done, Started
from kdcache.prefetch import prefetch
from kdcache.store import load_index
from kdcache.store.commit import shard_files
from kdcache.store.failures import Failure, load_failures
from kdcache.store.writer import Committed

FEATURE = "i3d-rgb/mixed4a"
STREAMS = ["rgb", FEATURE]
SMALL = {"size": 32, "frames": 8, "short_side": 32, "weights": {"i3d-rgb": "random:0"}, "bar": False}
OPTIONS = ["--stream", "rgb", "--stream", FEATURE, "--size", "32", "--frames", "8", "--short-side", "32"]

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Six short videos with two clips each."""
    folder = tmp_path_factory.mktemp("dataset")
    make_dataset(folder, clips_per_class=1)
    return folder


def extract(dataset: Path, out: Path, **options) -> run_module.ExtractReport:
    return kdcache.extract(dataset / "clips.csv", root=dataset, out=out, streams=STREAMS, **SMALL, **options)


@pytest.fixture(scope="module")
def clean_run(dataset, tmp_path_factory) -> dict[tuple[str, str], np.ndarray]:
    """What every run must come to in the end."""
    out = tmp_path_factory.mktemp("clean")
    assert extract(dataset, out).extracted == 12
    return arrays(out)


@pytest.fixture(scope="module")
def halfway(dataset, tmp_path_factory) -> Path:
    """A cache that holds the features of half the clips: what is missing makes two units, hence two shards."""
    out = tmp_path_factory.mktemp("halfway")
    rows = kdcache.read_manifest(dataset / "clips.csv", dataset)
    some = rows[rows["role"] == "observed"].reset_index(drop=True)
    kdcache.extract(some, root=dataset, out=out, streams=[FEATURE], **SMALL)
    assert len(shard_files(out)) == 1
    return out


def arrays(out: Path) -> dict[tuple[str, str], np.ndarray]:
    """(stream, clip_id) → array, of all that the index of a cache holds."""
    cache = kdcache.Cache(out)
    found = {}
    for stream in cache.streams:
        clips = cache.clips["clip_id"][cache.has(stream)].tolist()
        found |= {(stream, c): np.asarray(a) for c, a in zip(clips, cache.read(stream, clips), strict=True)}
    return found


def finish(dataset: Path, out: Path, expected: dict[tuple[str, str], np.ndarray]) -> str:
    """Run the same command again; the cache must then be that of an undisturbed run. Returns what it printed."""
    result = CliRunner().invoke(main, command(dataset, out), catch_exceptions=False)
    assert result.exit_code == 0
    found = arrays(out)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
    assert not list(out.glob(".*.partial"))
    assert not (out / "failures.csv").exists()
    assert kdcache.Cache(out).verify().ok
    return result.stdout


def command(dataset: Path, out: Path, workers: int = 1) -> list[str]:
    where = ["--manifest", str(dataset / "clips.csv"), "--root", str(dataset), "--out", str(out)]
    return ["extract", *where, *OPTIONS, "--weights", "random:0", "--workers", str(workers)]


def start(dataset: Path, out: Path, workers: int = 1, prelude: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, after ``prelude``, which arranges what befalls it."""
    code = f"import os, signal, sys\n{prelude}\nfrom kdcache.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command(dataset, out, workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# ---------------------------------------------------------------------------
# the whole run dies
# ---------------------------------------------------------------------------

# Each replaces a function by one that kills the process when it is called for the n-th time.
STRIKE = """
def strike(module, name, n, sign):
    real = getattr(module, name)
    calls = []
    def struck(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), sign)
        return real(*args, **kwargs)
    setattr(module, name, struck)
"""
IN_SECOND_SHARD = "import kdcache.store.writer as m\nstrike(m, 'publish', 2, signal.SIGKILL)"
IN_INDEX = "import kdcache.store.index\nimport kdcache.files as m\nstrike(m, 'sync', 1, signal.SIGKILL)"


@posix
@pytest.mark.parametrize(
    ("moment", "shards", "left"),
    [(IN_SECOND_SHARD, 2, ".shard."), (IN_INDEX, 3, ".manifest.csv.")],
    ids=["while a shard is written", "while the index is written"],
)
def test_a_killed_run_goes_on_from_its_last_shard(dataset, halfway, clean_run, tmp_path, moment, shards, left):
    out = Path(shutil.copytree(halfway, tmp_path / "out"))
    process = start(dataset, out, prelude=STRIKE + moment)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(shard_files(out)) == shards
    assert [p.name.startswith(left) for p in out.glob(".*.partial")] == [True]
    assert load_index(out).shape[0] == 6  # what the killed run did is not in the index yet
    done = 6 * (shards - 1)
    assert f"{done} cached already, {12 - done} extracted" in finish(dataset, out, clean_run)


@posix
def test_a_killed_run_takes_its_workers_with_it(dataset, clean_run, tmp_path):
    out = tmp_path / "out"
    process = start(dataset, out, workers=2)
    until = time.monotonic() + 60
    while not list(out.glob("*shard*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate(timeout=60)  # ends when the last worker has let go of standard error
    assert "Traceback" not in errors
    finish(dataset, out, clean_run)


@posix
def test_sigterm_keeps_what_was_finished(dataset, clean_run, tmp_path):
    out = tmp_path / "out"
    moment = "import kdcache.extraction.features as m\nstrike(m.Backbones, 'several', 2, signal.SIGTERM)"
    process = start(dataset, out, prelude=STRIKE + moment)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "stopped early; the same command goes on from here" in text
    assert not list(out.glob(".*.partial"))
    kept = arrays(out)
    assert 2 <= sum(stream == FEATURE for stream, _ in kept) < 12
    assert all(np.array_equal(kept[k], clean_run[k]) for k in kept)
    finish(dataset, out, clean_run)


# ---------------------------------------------------------------------------
# a worker dies
# ---------------------------------------------------------------------------


@posix
def test_a_killed_worker_is_replaced(dataset, clean_run, tmp_path, monkeypatch):
    real, killed = run_module.ExtractionRun._on_event, []

    def listen(self, event):
        if isinstance(event, Computed) and not killed:  # a clip is computed, its shard is not committed
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()
        real(self, event)

    monkeypatch.setattr(run_module.ExtractionRun, "_on_event", listen)
    report = extract(dataset, tmp_path, workers=2)
    assert killed[0].exitcode == -signal.SIGKILL
    assert (report.extracted, report.failures) == (12, [])
    assert "12 cached already" in finish(dataset, tmp_path, clean_run)


def task(clip_id: str, path: str) -> Task:
    return Task({"clip_id": clip_id, "source": path}, f"/root/{path}", "f", 0.0, 1.0, {"rgb": f"key-{clip_id}"})


A1, A2, B1, C1 = task("a1", "a.mp4"), task("a2", "a.mp4"), task("b1", "b.mp4"), task("c1", "c.mp4")
D1 = task("d1", "d.mp4")
TASKS = (A1, A2, B1, C1, D1)


def test_work_is_cut_again_for_fewer_workers():
    """Every source is hashed once, by the unit that opens it first."""
    stream = SimpleNamespace(name="rgb", nbytes=lambda start, stop: 10)
    units = [WorkUnit(("rgb",), (t,), frozenset({t.path} - {A2.path} if t is A2 else {t.path})) for t in TASKS]
    paths = [t.path for t in TASKS]
    assert cut_again(units, [stream], 1) == [WorkUnit(("rgb",), TASKS, frozenset(paths))]
    assert cut_again(units, [stream], 2) == [
        WorkUnit(("rgb",), TASKS[:3], frozenset(paths[:3])),
        WorkUnit(("rgb",), TASKS[3:], frozenset(paths[3:])),
    ]


def after(
    *tasks: Task, events: Sequence[object] = (), how: str = "killed by signal 9", deaths: dict[str, int] | None = None
) -> tuple[list[WorkUnit], list[Failure]]:
    """What is run again after a worker died with a unit of ``tasks``, and what has failed."""
    failures: list[Failure] = []
    unit = WorkUnit(("rgb",), tasks) if tasks else None
    return after_death(unit, events, how, {} if deaths is None else deaths, failures.append), failures


AT_A = Started("/root/a.mp4")


def test_after_a_first_death_all_that_was_neither_committed_nor_handed_over_is_tried_again():
    done = Done(Committed("shard-00000.h5", ["a1"], {}, {}), (A1,))
    deaths: dict[str, int] = {}
    events = [AT_A, done, Failure("c1", "c.mp4", "decode", "damaged."), Prepared(D1, ("rgb",), None)]
    units, failures = after(A1, A2, B1, C1, D1, events=events, deaths=deaths)
    assert units == [WorkUnit(("rgb",), (A2,)), WorkUnit(("rgb",), (B1,))]
    assert (failures, deaths) == ([], {"/root/a.mp4": 1})


@pytest.mark.parametrize("how", ["killed by signal 9", "exit code 1"])
def test_clips_of_a_source_that_kills_two_workers_fail(how):
    units, failures = after(A1, A2, B1, events=[AT_A], how=how, deaths={"/root/a.mp4": 1})
    assert units == [WorkUnit(("rgb",), (B1,))]
    assert [(f.clip_id, f.source, f.stage, f.key) for f in failures] == [
        ("a1", "a.mp4", "worker", "key-a1"),
        ("a2", "a.mp4", "worker", "key-a2"),
    ]
    assert f"Two workers died ({how}) while reading /root/a.mp4" in failures[0].reason


def test_a_source_that_kills_before_word_of_it_is_blamed_all_the_same():
    """Decoding runs ahead of the events: the worker may seem to be at no source."""
    deaths: dict[str, int] = {}
    (unit,), _ = after(B1, deaths=deaths)
    units, failures = after(*unit.tasks, deaths=deaths)
    assert units == []
    assert [f.clip_id for f in failures] == ["b1"]


def test_workers_that_die_before_they_get_anything_end_the_run():
    deaths: dict[str, int] = {}
    assert after(deaths=deaths) == ([], [])
    with pytest.raises(KdcacheError, match="Workers die before reading anything"):
        after(deaths=deaths)


@dataclass(frozen=True)
class FatalWork(ExtractionWork):
    """Work in which one video kills the worker as a decoder's crash would."""

    def start(self, worker: int):
        from kdcache.streams import video as module

        real = module.open_source

        def open_source(path, *options):
            if path.endswith("turn-00.mp4"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, *options)

        module.open_source = open_source
        return super().start(worker)


@posix
def test_a_source_that_kills_every_worker_is_left_out(dataset, tmp_path, monkeypatch):
    rows = kdcache.read_manifest(dataset / "clips.csv", dataset)
    rows = rows[rows["source"].isin(["videos/lift-00.mp4", "videos/turn-00.mp4"])].reset_index(drop=True)
    monkeypatch.setattr(local_module, "ExtractionWork", FatalWork)
    report = kdcache.extract(rows, root=dataset, out=tmp_path, streams=["rgb"], workers=2, **SMALL)
    assert report.extracted == 2
    assert {(f.clip_id, f.stage) for f in load_failures(tmp_path)} == {
        ("turn-00-observed", "worker"),
        ("turn-00-action", "worker"),
    }
    assert "killed by signal 9" in report.failures[0].reason


# ---------------------------------------------------------------------------
# a few items ahead
# ---------------------------------------------------------------------------


def threads_ahead() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "kdcache-prefetch"]


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_ahead_keeps_the_order(depth):
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))
    assert threads_ahead() == []


def test_ahead_computes_no_further_than_its_depth():
    made = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = prefetch(numbers(), 3)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 6  # one taken, three waiting, one in hand, one under way
    items.close()


def test_an_error_ahead_surfaces_at_its_place():
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise KeyError("three")

    seen: list[int] = []
    with pytest.raises(KeyError, match="three"):
        seen.extend(prefetch(numbers(), 10))
    assert seen == [0, 1, 2]
    assert threads_ahead() == []


def test_leaving_early_stops_the_thread_and_closes_what_it_reads():
    closed = []

    def numbers(name: str) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append((name, threading.current_thread().name))

    chained = prefetch(prefetch(numbers("inner"), 2), 2)
    for i in chained:
        if i == 5:
            break
    chained.close()
    assert closed == [("inner", "kdcache-prefetch")]
    assert threads_ahead() == []
