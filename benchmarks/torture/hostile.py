"""Files of strangers, and files that were damaged on purpose, of every kind that kdcache opens."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import kdcache
from kdcache.errors import KdcacheError
from kdcache.exchange import import_lmdb, import_npy
from kdcache.log import logger
from kdcache.methods.early_options import EarlyOptions
from kdcache.skeletons import open_skeleton
from kdcache.skeletons.arrays import JointLayout
from kdcache.sources import check, open_source
from kdcache.store import Cache, describe, reindex, verify
from kdcache.store.failures import load_failures
from torture import isolation, readers, strange_files, strange_lists, strange_presets, strange_shards, texts
from torture.cases import FAILED, SILENT, SURVIVED, Outcome, Table, generator
from torture.jobs import HEAD
from torture.materials import BROKEN, CLIPS, TINY, all_layouts, features, videos
from torture.server import warm

COUNT = 5000
ABOUT = "Every kind of file, hostile or damaged: one sentence, within ten seconds and 2 GB, or what it really holds."

Spoil = Callable[[Path, random.Random], str]


@dataclass(frozen=True)
class Kind:
    """Files of one kind: how they are made whole, which are spoilt, and everything that opens them."""

    share: int
    make: Callable[[Path], None]
    files: tuple[str, ...]
    """Patterns, each drawn as often as the others."""
    spoil: Spoil
    readers: tuple[Callable[[Path, random.Random], Any], ...]


def run(count: int, seed: int, seconds: float, folder: Path) -> Table:
    """See ``torture.cases``."""
    warm()
    shutil.rmtree(folder / "cases", ignore_errors=True)
    table = isolation.run_cases("hostile", count, seed, seconds, folder, lambda number: case(folder, seed, number))
    shutil.rmtree(folder / "cases", ignore_errors=True)
    return table


def case(folder: Path, seed: int, number: int) -> Outcome:
    """Make the files of a kind, spoil one, and let everything open it that does."""
    logger.setLevel(logging.CRITICAL)
    rng = generator("hostile", seed, number)
    (name,) = rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])
    kind, place = KINDS[name], folder / "cases" / str(os.getpid())
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(_whole(folder, name), place / "x", symlinks=True, copy_function=_copy)
    path = rng.choice([p for p in sorted((place / "x").glob(rng.choice(kind.files))) if p.is_file()])
    title = f"{name}: {kind.spoil(path, rng)}"
    isolation.announce(title)
    began = time.perf_counter()
    verdict, how = opened(kind, place / "x", rng)
    return Outcome(number, title, verdict, how, time.perf_counter() - began)


def _copy(source: str, target: str) -> None:
    """A file, or another pipe."""
    shutil.copy2(source, target) if os.path.isfile(source) else os.mkfifo(target)


def _whole(folder: Path, name: str) -> Path:
    """The files of a kind, made once for all processes of a call."""
    place = folder / "cases" / "whole" / name.replace(" ", "-")
    if not place.exists():
        making = place.with_name(f"making-{os.getpid()}")
        making.mkdir(parents=True)
        KINDS[name].make(making)
        making.rename(place)
    return place


def opened(kind: Kind, folder: Path, rng: random.Random) -> tuple[str, str]:
    """What all readers of a spoilt file make of it."""
    named = 0
    for reader in kind.readers:
        try:
            reader(folder, rng)
        except KdcacheError as error:
            named += 1
            if len(str(error)) > 20_000:
                return FAILED, f"a sentence of {len(str(error))} characters"
        except readers.WrongTensor as error:
            return SILENT, str(error)
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)
            at = next((f for f in reversed(trace) if "/kdcache/" in f.filename), trace[-1])
            where = f"{Path(at.filename).name}:{at.lineno}"
            return FAILED, f"traceback: {type(error).__name__}: {str(error)[:150]} ({where})"
    return SURVIVED, "named" if named else "read"


def _cache(folder: Path, rng: random.Random) -> None:
    """All arrays; each must be of the type and shape that the cache says, and numbers must be finite."""
    cache = Cache(folder / "out")
    for stream in cache.streams:
        clips = cache.clips["clip_id"][cache.has(stream)].tolist()
        for clip in clips:
            try:
                (array,) = cache.read(stream, [clip])
            except KdcacheError:
                continue
            if array.dtype != cache.dtype(stream):
                raise readers.WrongTensor(f"{stream} of {clip} is {array.dtype}, the cache says {cache.dtype(stream)}")
        cache.frames(stream, clips)
    cache.origin(cache.clips["clip_id"].tolist())


def _verify(folder: Path, rng: random.Random) -> None:
    str(verify(folder / "out", progress=False))


def _describe(folder: Path, rng: random.Random) -> None:
    str(describe(folder / "out"))
    for path in sorted((folder / "out").glob("shard-*.h5")):
        str(describe(path))


def _reindex(folder: Path, rng: random.Random) -> None:
    reindex(folder / "out")
    _cache(folder, rng)


def _repair(folder: Path, rng: random.Random) -> None:
    verify(folder / "out", repair=True, progress=False)
    if not (report := verify(folder / "out", progress=False)).ok and not report.foreign:
        raise readers.WrongTensor(f"not whole after a repair: {report}")


def _extract(folder: Path, rng: random.Random) -> None:
    root = folder / "videos"
    kdcache.extract(root / "clips.csv", root, folder / "out", ["rgb"], device="cpu", short_side=32, bar=False)


def _clip_by_clip(folder: Path, rng: random.Random) -> None:
    """An extraction in which one source is damaged: each clip is there or a failure, and none but it and the one that
    is no video has failed."""
    _extract(folder, rng)
    cache = Cache(folder / "out")
    there = set(cache.clips["clip_id"][cache.has("rgb")])
    cache.read("rgb", sorted(there))
    failed = {failure.clip_id for failure in load_failures(folder / "out")}
    if len(there) + len(failed) != CLIPS or there & failed or not {BROKEN} <= failed or len(failed) > 2:
        raise readers.WrongTensor(f"{len(there)} clips are there, and {sorted(failed)} failed, of {CLIPS}")


def _manifest(folder: Path, rng: random.Random) -> None:
    rows = kdcache.read_manifest(folder / "videos" / "clips.csv", folder / "videos")
    for column in ("start_s", "stop_s"):
        if np.isinf(rows[column].astype(float)).any():
            raise readers.WrongTensor(f"{column} is infinite")


def _places(folder: Path) -> None:
    """Videos, beside things that no manifest should name."""
    videos(folder / "videos")
    os.mkfifo(folder / "videos" / "pipe")
    (folder / "videos" / "loop").symlink_to("loop")
    (folder / "videos" / "outside").symlink_to("/etc")


def _cached_videos(folder: Path) -> None:
    videos(folder / "videos")
    _extract(folder, random.Random(0))
    (folder / "out" / "damaged.csv").write_text("shard,stream,row,clip_id,reason\n")


def _trained(folder: Path) -> None:
    features(folder / "features", shards=1)
    kdcache.train("early", folder / "features", out=folder / "out", device="cpu", **HEAD)


def _run(folder: Path, rng: random.Random) -> None:
    readers.run_served(folder / "out")


def _go_on(folder: Path, rng: random.Random) -> None:
    (folder / "out" / "metrics.json").unlink(missing_ok=True)
    kdcache.train("early", folder / "features", out=folder / "out", device="cpu", **HEAD)


def _options(folder: Path, rng: random.Random) -> None:
    """A training with one strange option; those that only make it long are left out."""
    kept = {"epochs", "teacher_epochs", "hidden", "teacher_hidden", "batch_size", "k"}
    names = [one.name for one in fields(EarlyOptions) if one.name not in kept]
    names += ["seed", "memory_fraction", "validation", "tau_s", "save_every", "eval_every", "stream", "recipe"]
    values = [value for value in texts.VALUES if not isinstance(value, int) or abs(value) < 100]
    given: dict[str, Any] = HEAD | {rng.choice(names): rng.choice(values)}
    kdcache.train("early", folder / "features", out=folder / "out", device="cpu", **given)


def _weights(folder: Path, rng: random.Random) -> None:
    from kdcache.backbones.checkpoint import load_state_dict

    error: KdcacheError | None = None
    for path in sorted(folder.iterdir()):
        try:
            load_state_dict(path)
            kdcache.backbones.build(TINY, str(path), 3)
        except KdcacheError as found:
            error = found
    if Path("/tmp/kdcache-torture-ran").exists():
        raise readers.WrongTensor("code of a checkpoint ran")
    if error:
        raise error


def _skeletons(folder: Path, rng: random.Random) -> None:
    error: KdcacheError | None = None
    for path in sorted(folder.iterdir()):
        try:
            found = open_skeleton(path, JointLayout(1, 30.0) if path.suffix in (".npy", ".npz") else None)
        except KdcacheError as named:
            error = named
            continue
        if not np.isfinite(found.joints).all():
            raise readers.WrongTensor(f"{path.name} has joints that are not finite")
    if error:
        raise error


def _pictures(folder: Path, rng: random.Random) -> None:
    error: KdcacheError | None = None
    for path in sorted(folder.iterdir()):
        try:
            check(path)
            with open_source(path, fps=10.0) as source:
                shapes = {frame.shape for frame in source.read(range(len(source.times)))}
        except KdcacheError as named:
            error = named
            continue
        if len(shapes) > 1:
            raise readers.WrongTensor(f"{path.name} has frames of {len(shapes)} sizes")
    if error:
        raise error


def _import(folder: Path, rng: random.Random) -> None:
    about: dict[str, Any] = {"stream": "x/pool", "origin": "none", "progress": False}
    import_npy(folder / "npy", folder / "clips.csv", folder / "from-npy", **about)
    _cache_at(folder / "from-npy")
    import_lmdb(folder / "lmdb", folder / "clips.csv", folder / "from-lmdb", frames=4, step=0.25, **about)
    _cache_at(folder / "from-lmdb")


def _cache_at(out: Path) -> None:
    if (out / "manifest.csv").exists():
        readers.cache_served(out)


_STORE = (_describe, _verify, _cache, _reindex, _repair)

KINDS = {
    "shard": Kind(30, lambda f: all_layouts(f / "out"), ("out/shard-*.h5",), strange_shards.spoil_shard, _STORE),
    "compressed shard": Kind(
        6, lambda f: all_layouts(f / "out", codec="zstd"), ("out/shard-*.h5",), strange_shards.spoil_shard, _STORE
    ),
    "index": Kind(10, lambda f: all_layouts(f / "out"), ("out/manifest.csv",), texts.spoil_csv, _STORE),
    "list of shards": Kind(3, lambda f: all_layouts(f / "out"), ("out/shards.json",), texts.spoil_json, _STORE),
    "lists beside a cache": Kind(
        8,
        _cached_videos,
        ("out/failures.csv", "out/sources.csv", "out/damaged.csv", "out/manifest.csv"),
        texts.spoil_csv,
        (_describe, _verify, _cache, _extract, _repair),
    ),
    "manifest": Kind(12, _places, ("videos/clips.csv",), texts.spoil_csv, (_manifest, _extract)),
    "videos": Kind(6, lambda f: videos(f / "videos"), ("videos/*.avi",), strange_files.spoil_video, (_clip_by_clip,)),
    "run's JSON": Kind(4, _trained, ("out/*.json", "out/*/summary.json"), texts.spoil_json, (_run, _go_on)),
    "run's TOML": Kind(4, _trained, ("out/config.toml",), texts.spoil_toml, (_run, _go_on)),
    "presets": Kind(3, strange_presets.make_presets, ("presets/*",), texts.spoil_toml, (strange_presets.read_all,)),
    "run's tables": Kind(2, _trained, ("out/metrics.csv", "out/predictions.csv"), texts.spoil_csv, (_run, _go_on)),
    "options": Kind(4, lambda f: features(f / "features", 1), ("**/*",), lambda path, rng: "value", (_options,)),
    "weights": Kind(6, strange_files.weights, ("*",), strange_files.spoil_weights, (_weights,)),
    "skeletons": Kind(5, strange_files.skeletons, ("*",), strange_files.spoil_skeleton, (_skeletons,)),
    "pictures": Kind(4, strange_files.pictures, ("*/*",), strange_files.spoil_picture, (_pictures,)),
    "dataset lists": Kind(5, strange_lists.lists, ("*/**/*",), strange_lists.spoil_list, (strange_lists.read_lists,)),
    "tars of pictures": Kind(2, strange_files.pictures, ("*.tar*",), strange_files.spoil_tar, (_pictures,)),
}
if importlib.util.find_spec("lmdb"):
    files = ("npy/*", "lmdb/data.mdb", "lmdb/data.mdb", "clips.csv")
    KINDS["vectors"] = Kind(3, strange_files.vectors, files, strange_files.spoil_vectors, (_import,))
