"""Damaged bytes in every file of a cache and of a run: named by whoever uses them, or shown to be unused."""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import kdcache
from kdcache.engine import checkpoint
from kdcache.log import logger
from torture import isolation, readers
from torture.cases import FAILED, SILENT, SURVIVED, Outcome, Table, generator
from torture.damage import damaged
from torture.jobs import HEAD
from torture.materials import all_layouts, features, videos
from torture.readers import Named, Served
from torture.server import warm

COUNT = 10_000
ABOUT = "Bytes of stored files are changed: whoever uses them must say so, or serve what was written."


@dataclass(frozen=True)
class Target:
    """A folder with files to damage, and who reads them."""

    share: int
    """Cases of a hundred."""
    make: Callable[[Path], None]
    read: Callable[[Path], Served]
    """Folder → everything that is served; ``KdcacheError`` where a reader refuses."""
    files: tuple[str, ...] = ("**/*",)
    """Patterns of the files that are damaged; each pattern is drawn as often as the others."""
    verified: bool = False
    """Whether ``verify`` must name it too."""
    consumed: bool = False
    """Whether reading changes the folder, so that each case takes a new one."""


def _finished(folder: Path) -> None:
    features(folder / "features", shards=2)
    kdcache.train("early", folder / "features", out=folder / "out", device="cpu", **HEAD)


def _interrupted(folder: Path) -> None:
    """A training whose first stage is done, and whose second has two of three epochs."""
    features(folder / "features", shards=2)
    save, left = checkpoint.save_state, [2 + 2]

    def some(*arguments: Any) -> None:
        save(*arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    try:
        with mock.patch.object(checkpoint, "save_state", some):
            readers.resumed(folder / "features", folder / "out")
    except KeyboardInterrupt:
        return
    raise RuntimeError("the training was not interrupted")


def _extracted(folder: Path) -> None:
    videos(folder / "videos")
    readers.extracted(folder / "out", folder / "videos")


_RUN = ("out/*.toml", "out/*.json", "out/*.csv", "out/*/summary.json", "out/student/*.safetensors")

TARGETS = {
    "cache": Target(
        38, lambda f: all_layouts(f / "out"), lambda f: readers.cache_served(f / "out"), ("out/shard-*.h5",), True
    ),
    "compressed cache": Target(
        15,
        lambda f: all_layouts(f / "out", codec="zstd"),
        lambda f: readers.cache_served(f / "out"),
        ("out/shard-*.h5",),
        True,
    ),
    "index": Target(
        15,
        lambda f: all_layouts(f / "out"),
        lambda f: readers.cache_served(f / "out"),
        ("out/manifest.csv", "out/manifest.csv", "out/shards.json"),
        True,
    ),
    "side files": Target(
        4,
        _extracted,
        lambda f: readers.extracted(f / "out", f / "videos"),
        ("out/failures.csv", "out/sources.csv", "out/sources.csv.sha256", "out/manifest.csv"),
        consumed=True,
    ),
    "training data": Target(
        5, lambda f: features(f / "out", shards=2), lambda f: readers.trained(f / "out"), ("out/shard-*.h5",)
    ),
    "finished run": Target(15, _finished, lambda f: readers.run_served(f / "out"), _RUN),
    "interrupted run": Target(
        8,
        _interrupted,
        lambda f: readers.resumed(f / "features", f / "out"),
        ("out/student/state.pt", "out/student/state.pt", "out/config.toml", "out/teacher/*"),
        consumed=True,
    ),
}


def run(count: int, seed: int, seconds: float, folder: Path) -> Table:
    """See ``torture.cases``."""
    warm()
    shutil.rmtree(folder / "copies", ignore_errors=True)
    limits = isolation.Limits(seconds=60, cases=200)
    table = isolation.run_cases("bits", count, seed, seconds, folder, lambda n: case(folder, seed, n), limits)
    shutil.rmtree(folder / "copies", ignore_errors=True)
    return table


@cache
def _prepared(folder: Path, name: str, process: int) -> tuple[Path, Served]:
    """A process's own folder of a target, undamaged, and what is served of it."""
    target, place = TARGETS[name], folder / "copies" / f"{process}-{name.replace(' ', '-')}"
    target.make(place / "work")
    if target.consumed:
        shutil.copytree(place / "work", place / "kept")
    served = target.read(place / "work")
    return place, served


def case(folder: Path, seed: int, number: int) -> Outcome:
    """Damage one file, ask all who read it, and bring it back."""
    rng = generator("bits", seed, number)
    (name,) = rng.choices(list(TARGETS), [target.share for target in TARGETS.values()])
    logger.setLevel(logging.CRITICAL)
    place, expected = _prepared(folder, name, os.getpid())
    began = time.perf_counter()
    path, kind = strike(TARGETS[name], place, rng)
    verdict, how = judged(TARGETS[name], place / "work", expected)
    if not TARGETS[name].consumed:
        os.replace(place / "original", path)
    return Outcome(number, f"{name}: {kind} in {_called(path)}", verdict, how, time.perf_counter() - began)


def strike(target: Target, place: Path, rng: random.Random) -> tuple[Path, str]:
    """Damage a file in ``place/work``; its original is kept in ``place/original``."""
    work = place / "work"
    if target.consumed:
        shutil.rmtree(work)
        shutil.copytree(place / "kept", work)
    pattern = rng.choice(target.files)
    path = rng.choice([p for p in sorted(work.glob(pattern)) if p.is_file() and not p.name.startswith(".")])
    kind, data = damaged(path.read_bytes(), rng)
    shutil.copy2(path, place / "original")
    (place / "damaged").write_bytes(data)
    os.replace(place / "damaged", path)  # another file: nothing may be known of it from before
    return path, kind


def judged(target: Target, folder: Path, expected: Served) -> tuple[str, str]:
    """What whoever reads a damaged folder makes of it."""
    try:
        found = readers.is_verified(folder / "out") if target.verified else ""
        try:
            served = readers.asked(target.read, folder)
        except Named as sentence:
            if target.verified and not found:
                return FAILED, f"verify does not name what a reader does: {sentence}"
            return SURVIVED, "named"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return FAILED, f"traceback: {type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
    wrong = [key for key in sorted({*served, *expected}) if served.get(key) != expected.get(key)]
    if wrong:
        return SILENT, f"{len(wrong)} other values served, among them {wrong[0]}" + (", verify names it" * bool(found))
    return SURVIVED, "named by verify, reads equal" if found else "unused: all reads equal"


def _called(path: Path) -> str:
    """Files of one kind under one name."""
    return "shards" if path.suffix == ".h5" else path.name
