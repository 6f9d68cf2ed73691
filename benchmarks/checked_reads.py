"""What checking bytes when they are first read costs: the same reads and the same training with and without checks.

    python benchmarks/checked_reads.py [--write] [--scale 0.1]

Shuffled clips in batches of 32, checked and unchecked in turn. ``cold``: a cache just opened, the shards put out of the
page cache before (the disk's speed is in ``GB/s``; a virtual machine's host may still hold them). ``first``: a cache
just opened, the shards in the page cache, where a read is a copy in memory. ``warm``: the same cache again, which has
checked all. ``sha256``: first reads of shards without checksums, as version 0.1 wrote them. ``training``: a whole
`kdcache train anticipation`, light head, 10 epochs, on maps of 112 px. Ratios are seconds with over seconds without.
Acceptance: ≤ 1.10 cold, ≤ 1.03 in training. The compiled checksum, which a process loads after its first 64 MiB, is
loaded before anything is timed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import train
from read import BATCH, STREAM, build, feature_maps

import kdcache
from common import compare, options, run
from kdcache.store import Cache
from kdcache.store.checksum_kernel import sum_rows
from kdcache.store.commit import shard_files
from kdcache.store.opened import OpenedShards
from kdcache.store.reader import StreamReader
from kdcache.store.shard import Shard

CASES = {  # clips, shape [V, …], the view that is read, stored clips a shard
    "i3d mixed4a 224 px, 1.5 MB": (400, (1, 480, 8, 14, 14), None, 160),
    "tsm pool, 41 kB": (8000, (1, 10, 2048), None, 4000),
    "one view of ten, 376 kB each": (100, (10, 480, 8, 7, 7), 0, 60),
}
PAIRS = 96  # of the training, maps of 376 kB


class UncheckedShards(OpenedShards):
    """Shards of which all that is read is believed."""

    def reader(self, shard: Shard, stream: str) -> StreamReader:
        """A reader that checks nothing."""
        return StreamReader(shard, stream)


class Unchecked(Cache):
    """A cache that believes what it reads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._shards = UncheckedShards(self.path)


class OlderShards(OpenedShards):
    """Shards without checksums."""

    def get(self, name: str) -> Shard:
        """The shard, less these."""
        shard = super().get(name)
        return replace(shard, streams={s: replace(stored, checks=None) for s, stored in shard.streams.items()})


class Older(Cache):
    """A cache of shards without checksums."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._shards = OlderShards(self.path)


def forget(folder: Path) -> None:
    """Put a cache's shards out of the page cache."""
    for path in shard_files(folder):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure_case(clips: int, shape: tuple[int, ...], view: int | None, a_shard: int, folder: Path) -> dict[str, Any]:
    """Ratios of one shape of clips."""
    build(folder, feature_maps(shape), clips, a_shard, None)
    order = np.random.default_rng(1).permutation(clips)
    out = np.empty((BATCH, *(shape if view is None else shape[1:])), np.float16)

    def read(cache: Cache) -> None:
        for start in range(0, clips, BATCH):
            batch = [f"clip-{i:05d}" for i in order[start : start + BATCH]]
            cache.read(STREAM, batch, view, out[: len(batch)])

    def opened(kind: type[Cache], cold: bool = False) -> Callable[[], Cache]:
        def make() -> Cache:
            if cold:
                forget(folder)
            cache = kind(folder)
            cache.shape(STREAM)
            return cache

        return make

    def seconds(kinds: dict[str, Callable[[], Cache]]) -> dict[str, float]:
        """Of reading alone: opening, and what it takes to forget, come before."""
        taken = {name: float("inf") for name in kinds}
        for _ in range(5):
            for name, make in kinds.items():
                cache = make()
                taken[name] = min(taken[name], compare({name: partial(read, cache)}, 1, 0)[name])
        return taken

    cold = seconds({"with": opened(Cache, True), "without": opened(Unchecked, True)})
    first = seconds({"with": opened(Cache), "without": opened(Unchecked), "sha256": opened(Older)})
    seen = {"with": Cache(folder), "without": Unchecked(folder)}
    warm = compare({name: partial(read, cache) for name, cache in seen.items()}, repeat=9)
    size = clips * out[0].nbytes / 1e9
    return {
        **{n: round(s["with"] / s["without"], 3) for n, s in (("cold", cold), ("first", first), ("warm", warm))},
        "sha256": round(first["sha256"] / first["without"], 3),
        "GB/s without": {
            n: round(size / s["without"], 2) for n, s in (("cold", cold), ("first", first), ("warm", warm))
        },
    }


def measure_training(pairs: int, folder: Path) -> dict[str, Any]:
    """Whole trainings, each from a cold cache of its own process' view: every stream is read anew."""
    train.write_cache(folder / "cache", pairs, (480, 8, 7, 7))
    checked = OpenedShards.reader
    count = 0

    def one(reader: Callable[..., StreamReader]) -> None:
        nonlocal count
        count += 1
        forget(folder / "cache")
        OpenedShards.reader = reader  # type: ignore[method-assign]
        try:
            chosen: dict[str, Any] = {
                "head": "light",
                "epochs": 10,
                "milestones": (),
                "batch_size": 32,
                "teacher_epochs": 1,
            }
            kdcache.train("anticipation", folder / "cache", out=folder / f"run-{count}", device="cpu", **chosen)
        finally:
            OpenedShards.reader = checked  # type: ignore[method-assign]

    taken = compare({"with": lambda: one(checked), "without": lambda: one(UncheckedShards.reader)}, repeat=3)
    return {"training": round(taken["with"] / taken["without"], 3), "seconds without": round(taken["without"], 1)}


def measure(scale: float) -> Iterator[tuple[str, Any]]:
    """All cases."""
    sum_rows(np.zeros((1, 9), np.uint8), np.zeros(1, np.int64), np.empty(1, np.uint64))
    for name, (clips, shape, view, a_shard) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            yield name, measure_case(max(BATCH, int(scale * clips)), shape, view, a_shard, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield "training", measure_training(max(16, int(scale * PAIRS)), Path(folder))


if __name__ == "__main__":
    parser = options("checked_reads", __doc__ or "")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the clips, for a look on a small machine")
    given = parser.parse_args()
    run("checked_reads", measure(given.scale), given)
