"""Shuffled clips from shards against the same bytes from one raw file, in the same order, into the same buffer.

    python benchmarks/read.py [--write]

Everything lies in the page cache, so what is measured is the cost of getting at the bytes. ``ratio`` is raw seconds
per shard seconds: 1 is the raw file's speed. Where in memory the system keeps a file makes up to 15 % of difference by
itself; ``own bytes`` is the same ratio to plain reads of the shards' own files, at the clips' offsets. Compressed
layouts are compared on the first clips of each set.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import compare, main
from kdcache.manifest import validate
from kdcache.store import Cache, Record, commit_shard, update_index
from kdcache.store.shard import open_shard

CASES = {  # clips, clips of the compressed copies, shape [V, …], stored clips a shard
    "i3d mixed4a 224 px": (400, 64, (1, 480, 8, 14, 14), 160),
    "i3d mixed4a 112 px": (1000, 128, (1, 480, 8, 7, 7), 500),
    "tsm pool, 10 segments": (4000, 1000, (1, 10, 2048), 4000),
}
BATCH = 32
STREAM = "feature"
RECIPE = {"stream": STREAM, "layout": "fixed", "dtype": "float16"}


def feature_maps(shape: tuple[int, ...], count: int = 16) -> NDArray[np.float16]:
    """Maps with the statistics that matter to a codec: smooth in space, rectified, about 60 % zeros."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(count, *shape)).astype(np.float32)
    if len(shape) == 5:
        planes = maps.reshape(-1, *shape[-2:])
        for plane in planes:
            cv2.GaussianBlur(plane, (0, 0), 1.0, dst=plane)
        maps /= maps.std()
    return np.asarray(np.maximum(maps - 0.25, 0), np.float16)


def build(folder: Path, maps: NDArray[np.float16], clips: int, a_shard: int, codec: str | None) -> Cache:
    """A cache of ``clips`` clips."""
    ids = [f"clip-{i:05d}" for i in range(clips)]
    for first in range(0, clips, a_shard):
        part = range(first, min(first + a_shard, clips))
        items = [
            Record(
                {"clip_id": ids[i], "source": "v.mp4", "start_s": float(i), "stop_s": i + 1.0},
                {},
                {STREAM: f"{i:032x}"},
                {STREAM: np.arange(8, dtype=np.int32)},
                {STREAM: maps[i % len(maps)]},
            )
            for i in part
        ]
        rows = validate(pd.DataFrame([item.clip for item in items]))
        update_index(folder, rows, commit_shard(folder, items, {STREAM: RECIPE}, codec=codec).located)
    return Cache(folder)


def measure_case(clips: int, few: int, shape: tuple[int, ...], a_shard: int, folder: Path) -> dict[str, Any]:
    """Read all clips once in random order, in batches."""
    maps = feature_maps(shape)
    size = maps[0].nbytes
    order = np.random.default_rng(1).permutation(clips)
    out = np.empty((BATCH, *shape), np.float16)
    with open(folder / "raw", "wb") as file:
        for i in range(clips):
            file.write(maps[i % len(maps)].tobytes())
    raw = os.open(folder / "raw", os.O_RDONLY)
    plain, packed = (
        build(folder / "none", maps, clips, a_shard, None),
        build(folder / "zstd", maps, few, a_shard, "zstd"),
    )
    with h5py.File(folder / "gzip.h5", "w") as file:
        chunks = (1, 1, *shape[1:])
        rows = maps[np.arange(few) % len(maps)]
        file.create_dataset(STREAM, data=rows, chunks=chunks, compression="gzip", shuffle=True)

    def batches(limit: int) -> list[list[int]]:
        chosen = order[order < limit].tolist()
        return [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]

    ids = [f"clip-{i:05d}" for i in range(clips)]

    def from_raw(limit: int) -> None:
        for batch in batches(limit):
            for place, clip in enumerate(batch):
                os.preadv(raw, [out[place].reshape(-1).view(np.uint8).data], clip * size)

    shards = [open_shard(path)[0] for path in sorted((folder / "none").glob("*.h5"))]
    files = [os.open(shard.path, os.O_RDONLY) for shard in shards]
    starts = [shard.stored(STREAM).start or 0 for shard in shards]

    def from_shard_files(limit: int) -> None:
        for batch in batches(limit):
            for place, clip in enumerate(batch):
                shard, row = divmod(clip, a_shard)
                view = out[place].reshape(-1).view(np.uint8).data
                os.preadv(files[shard], [view], starts[shard] + row * size)

    def from_cache(cache: Cache, limit: int) -> None:
        for batch in batches(limit):
            cache.read(STREAM, [ids[i] for i in batch], out=out[: len(batch)])

    def from_gzip() -> None:
        with h5py.File(folder / "gzip.h5", "r") as file:
            for batch in batches(few):
                for place, clip in enumerate(batch):
                    file[STREAM].read_direct(out, np.s_[clip], np.s_[place])

    runs: dict[str, Callable[[], None]] = {
        "raw": lambda: from_raw(clips),
        "own bytes": lambda: from_shard_files(clips),
        "shards": lambda: from_cache(plain, clips),
        "zstd": lambda: from_cache(packed, few),
        "gzip": from_gzip,
    }
    seconds = compare(runs, repeat=7)
    for descriptor in (raw, *files):
        os.close(descriptor)
    whole, part = clips * size / 1e9, few * size / 1e9
    stored = sum(p.stat().st_size for p in (folder / "zstd").glob("*.h5"))
    return {
        "ratio": round(seconds["raw"] / seconds["shards"], 3),
        "own bytes": round(seconds["own bytes"] / seconds["shards"], 3),
        "GB/s": {name: round((part if name in ("zstd", "gzip") else whole) / s, 2) for name, s in seconds.items()},
        "zstd: times smaller": round(few * size / stored, 2),
        "kB a clip": round(size / 1e3, 1),
    }


def measure() -> Iterator[tuple[str, Any]]:
    """All cases."""
    for name, (clips, few, shape, a_shard) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            yield name, measure_case(clips, few, shape, a_shard, Path(folder))


if __name__ == "__main__":
    main("read", measure, "Shuffled clips from shards against one raw file.")
