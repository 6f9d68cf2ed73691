"""Commands that are disturbed: how each is prepared, called, and what it must come to in the end."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from kdcache import workers
from kdcache.extraction import worker
from kdcache.store import Cache, load_index, verify
from kdcache.store.failures import load_failures
from kdcache.store.indexed import location_columns
from torture import isolation
from torture.cases import SURVIVED, Outcome
from torture.materials import TINY

Result = dict[str, str]

HEAD: dict[str, Any] = {"epochs": 3, "batch_size": 8, "hidden": 8, "teacher_hidden": 4}
EARLY = [part for name, value in HEAD.items() for part in ("--set", f"{name}={value}")]
OFTEN = ["--set", "save_every=0"]
CPU = ["--device", "cpu"]
VARIES = ("environment.json", "tensorboard")
"""In names of files of a run that say where and when it was made."""
TIMES = (b"seconds", b"budget", b"seal", b"files", b"# kdcache-sha256")
"""Beginnings of fields that differ from run to run: times, the memory that was free, digests of
files that hold these."""


@dataclass(frozen=True)
class Job:
    """A command of kdcache on materials."""

    name: str
    commands: Callable[[Path, Path], list[list[str]]]
    """Materials and the folder that it changes → arguments; the first is disturbed and repeated, then the rest run."""
    result: Callable[[Path], Result]
    """What must be equal to an undisturbed run: name → digest."""
    prepare: Callable[[Path, Path], None] = lambda materials, folder: folder.mkdir(parents=True)
    setting: Callable[[], Any] = lambda: None
    """In the process of the command, before it begins."""
    spawns: bool = False
    accepted: tuple[int, ...] = (0,)
    """Exit statuses of an undisturbed command."""


# Caches


def cache_result(folder: Path) -> Result:
    """Keys, digests and arrays of every stream; the rest of the index; failures; what ``verify`` says; leftovers."""
    cache, index = Cache(folder / "out"), load_index(folder / "out")
    found = {}
    for stream in cache.streams:
        clips = index["clip_id"][cache.has(stream).tolist()].tolist()
        names = index.set_index("clip_id")
        for clip in clips:
            (array,) = cache.read(stream, [clip])
            row = names.loc[clip]
            content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            found[f"{stream} of {clip}"] = f"{row[f'{stream}:key']} {row[f'{stream}:digest']} {content}"
    rows = index.drop(columns=location_columns(list(index.columns))).sort_values("clip_id")
    found["rows"] = rows.to_csv(index=False)
    found["failures"] = json.dumps(sorted({f"{f.clip_id} {f.stage}" for f in load_failures(folder / "out")}))
    report = verify(folder / "out", progress=False)
    found["verify"] = "ok" if report.ok else str(report)
    return found | leftovers(folder)


def leftovers(folder: Path) -> Result:
    """Temporary files, which no finished command leaves."""
    return {"leftovers": str(sorted(path.name for path in folder.rglob(".*.partial")))}


def small_shards() -> None:
    """A shard after every second clip."""
    mock.patch.object(worker, "SHARD_BYTES", 2500).start()


class Forking:
    """Stands for ``multiprocessing`` in ``kdcache.workers``: workers are forks, which need no seconds to import."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("fork")
        self._ends: list[Connection] = []

    def get_context(self, method: str) -> Any:
        """Itself."""
        return self

    def Pipe(self) -> Any:
        """A pipe, whose parent's end no worker keeps: it ends when the parent does."""
        mine, child = self._context.Pipe()
        self._ends.append(mine)
        return mine, child

    def Process(self, target: Callable[..., Any], args: tuple[Any, ...], daemon: bool) -> Any:
        """A worker."""

        def serve() -> None:
            for end in self._ends:
                end.close()
            target(*args)

        return self._context.Process(target=serve, daemon=daemon)


def forked_workers() -> None:
    """Small shards, and workers that are forks."""
    small_shards()
    mock.patch.object(workers, "multiprocessing", Forking()).start()


def extract(materials: Path, folder: Path, streams: list[str], count: int) -> list[list[str]]:
    """An extraction of the videos into ``folder/out``."""
    videos = materials / "videos"
    where = ["--manifest", str(videos / "clips.csv"), "--root", str(videos), "--out", str(folder / "out")]
    chosen = [part for stream in streams for part in ("--stream", stream)]
    weights = ["--weights", f"{TINY}=random:0"] if f"{TINY}/pool" in streams else []
    return [["extract", *where, *chosen, *weights, "--short-side", "32", "--workers", str(count), *CPU]]


def _extracts(streams: list[str], count: int) -> Callable[[Path, Path], list[list[str]]]:
    return lambda materials, folder: extract(materials, folder, streams, count)


STREAMS = ["rgb", f"{TINY}/pool"]


def _damaged(materials: Path, folder: Path) -> None:
    """A cache with one array flipped in one shard, and another shard cut off."""
    shutil.copytree(materials / "extracted", folder)
    shards = sorted((folder / "out").glob("shard-*.h5"))
    data = bytearray(shards[0].read_bytes())
    at = data.index(b"\xff\xd8\xff") + 200  # within the first picture
    data[at] ^= 4
    shards[0].write_bytes(data)
    shards[1].write_bytes(shards[1].read_bytes()[:-1000])


def _repair(materials: Path, folder: Path) -> list[list[str]]:
    return [["verify", str(folder / "out"), "--repair"], *extract(materials, folder, STREAMS, 1)]


def _copy(materials: Path, folder: Path) -> list[list[str]]:
    return [["copy", str(materials / "extracted" / "out"), str(folder / "out")]]


def _exports(form: str, stream: str) -> Callable[[Path, Path], list[list[str]]]:
    """An export of a stream into ``folder/out``."""

    def call(materials: Path, folder: Path) -> list[list[str]]:
        return [["export", form, str(materials / "extracted" / "out"), "--stream", stream, "-o", str(folder / "out")]]

    return call


def _exported_lmdb(folder: Path) -> Result:
    """Entries of an LMDB, whose pages lie as they were written."""
    import lmdb

    with (
        lmdb.open(str(folder / "out"), readonly=True, lock=False, subdir=(folder / "out").is_dir()) as opened,
        opened.begin() as entries,
    ):
        found = {key.decode(): hashlib.sha256(value).hexdigest() for key, value in entries.cursor()}
    return found | leftovers(folder)


# Runs


def run_result(folder: Path) -> Result:
    """Digests of the files of a run, without what they say of times and of free memory."""
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        name = str(path.relative_to(folder / "out"))
        if path.is_file() and not name.endswith((".partial", ".lock")) and not any(part in name for part in VARIES):
            found[name] = hashlib.sha256(_constant(path).replace(str(folder).encode(), b"FOLDER")).hexdigest()
    return found | leftovers(folder)


def _constant(path: Path) -> bytes:
    """What is the same in every undisturbed run."""
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_text()))).encode()
    if path.suffix == ".toml":
        return b"\n".join(line for line in path.read_bytes().splitlines() if not line.startswith(TIMES))
    if path.name == "metrics.csv":
        return pd.read_csv(path).drop(columns="seconds", errors="ignore").to_csv().encode()
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not str(k).encode().startswith(TIMES)}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _train(materials: Path, folder: Path) -> list[list[str]]:
    shards = ["--shards", str(materials / "features"), "--out", str(folder / "out")]
    return [["train", "early", *shards, *CPU, *EARLY, *OFTEN]]


def _fit(materials: Path, folder: Path) -> list[list[str]]:
    videos = materials / "videos"
    where = ["--manifest", str(videos / "clips.csv"), "--root", str(videos), "--out", str(folder / "out")]
    sets = ["epochs=2", "lr=0.05", "batch_size=4", "augmentations=10", "save_every=0"]
    return [["fit", TINY, *where, *CPU, *(part for one in sets for part in ("--set", one))]]


def _ablate(materials: Path, folder: Path) -> list[list[str]]:
    rows = ["--row", "neither:alpha=0,beta=0", "--row", "self:alpha=0", "--seeds", "2", "--tune", "0"]
    shards = ["--shards", str(materials / "features"), "--out", str(folder / "out")]
    return [["ablate", "early", *shards, *rows, *CPU, *EARLY]]


JOBS = {
    job.name: job
    for job in (
        Job("extract", _extracts(STREAMS, 1), cache_result, setting=small_shards, accepted=(3,)),
        Job("extract-3", _extracts(STREAMS, 3), cache_result, setting=forked_workers, accepted=(3,)),
        Job("extract-spawned", _extracts(["rgb"], 3), cache_result, spawns=True, accepted=(3,)),
        Job("repair", _repair, cache_result, prepare=_damaged, setting=small_shards, accepted=(0, 3)),
        Job("copy", _copy, cache_result),
        Job("export npy", _exports("npy", "rgb"), run_result),
        Job("export lmdb", _exports("lmdb", f"{TINY}/pool"), _exported_lmdb),
        Job("export webdataset", _exports("webdataset", "rgb"), run_result),
        Job("train", _train, run_result),
        Job("fit", _fit, run_result, accepted=(3,)),
        Job("ablate", _ablate, run_result),
    )
}


def result_of(job: Job, folder: Path) -> Result:
    """A job's result, taken in a fork: the server itself computes nothing."""

    def taken() -> Outcome:
        return Outcome(0, job.name, SURVIVED, json.dumps(job.result(folder)))

    outcome = isolation.alone(taken, isolation.Limits(seconds=100))
    if outcome.verdict != SURVIVED:
        return {"result": outcome.how}
    return dict(json.loads(outcome.how))


def differences(found: Result, expected: Result) -> str:
    """Names that differ, and how many; empty where there are none."""
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    shown = [f"{name}: {found.get(name, 'missing')[:80]!r}" for name in names[:3]]
    return f"{len(names)} differ: {'; '.join(shown)}" if names else ""
