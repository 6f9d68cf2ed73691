"""What a clip costs by ``Cache.dataset`` in a ``DataLoader``, against the loader that training uses.

    python benchmarks/dataset.py [--write]

For each shape a synthetic cache is written to a temporary folder and read once in shuffled batches, in turn and in one
process: (i) by the internal loader, every batch from the shards, in a thread, as float32; (ii) by ``dataset.loader()``,
cast to float32 by the loop; (iii) by a ``DataLoader`` with ``collate_fn=dataset.collate``; (iv) by one with torch's
default collate. The acceptance is ≤ 1.1 for (ii) / (i), and for reading alone: a ``DataLoader`` without workers against
the internal loader's reads without its thread, neither cast. Everything lies in the page cache, and the loop does
nothing else, so worker processes have nothing to overlap with but the cast.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from common import compare, main
from kdcache.data.cache import TorchCache
from kdcache.data.loader import feed, shuffled
from kdcache.data.stream import CachedStream, MemoryBudget
from kdcache.manifest import validate
from kdcache.methods.contract import BatchSource
from kdcache.store import Record, commit_shard, update_index

STREAM = "feature"
RECIPE = {"stream": STREAM, "layout": "fixed", "dtype": "float16"}
CASES = {  # name → clips, shape of one, batch
    "maps 480 × 8 × 14 × 14": (96, (1, 480, 8, 14, 14), 16),
    "maps 480 × 8 × 7 × 7": (384, (1, 480, 8, 7, 7), 32),
    "vectors 10 × 2048": (4096, (1, 10, 2048), 64),
}
WORKERS = (0, 2)


def write_cache(folder: Path, clips: int, shape: tuple[int, ...]) -> TorchCache:
    """Random arrays in shards of about 256 MB."""
    rng = np.random.default_rng(0)
    ready = rng.random((16, *shape), np.float32).astype(np.float16)
    rows = [{"clip_id": f"{i:05d}", "source": "a.avi", "start_s": float(i), "stop_s": i + 1.0, "label": i % 10}
            for i in range(clips)]  # fmt: skip
    size = max(1, 256 * 2**20 // ready[0].nbytes)
    table, located = validate(pd.DataFrame(rows)), dict[str, Any]()
    for start in range(0, clips, size):
        records = [
            Record(row, {}, {STREAM: f"{start + i:032x}"}, {STREAM: np.arange(8, dtype=np.int32)},
                   {STREAM: ready[i % 16]})
            for i, row in enumerate(rows[start : start + size])
        ]  # fmt: skip
        located |= commit_shard(folder, records, {STREAM: RECIPE}).located[STREAM]
    update_index(folder, table, {STREAM: located})
    return TorchCache(folder)


def measure_case(clips: int, shape: tuple[int, ...], batch: int) -> dict[str, Any]:
    """Seconds of one pass and their ratios."""
    with tempfile.TemporaryDirectory() as name:
        cache, device = write_cache(Path(name), clips, shape), torch.device("cpu")
        dataset = cache.dataset(STREAM)
        stream = CachedStream(cache, STREAM, dataset.clip_ids, device, MemoryBudget(0))
        source = BatchSource({"x": (stream, torch.arange(clips))}, dict(dataset.labels))

        def internal() -> None:
            for each in feed(source, shuffled(source, batch, 1, np.random.default_rng(0)), device):
                _ = each["x"]

        def through(collate: Any, workers: int) -> Callable[[], None]:
            loader = DataLoader(
                dataset, batch, shuffle=True, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
            )

            def run() -> None:
                for each in loader:
                    _ = each[STREAM].float()

            return run

        def alone() -> None:
            for index, views in shuffled(source, batch, 1, np.random.default_rng(0)):
                stream.fetch(index, views, index)

        def threaded() -> None:
            for each in ready:
                _ = each[STREAM].float()

        def alone_by_loader() -> None:
            for _ in DataLoader(dataset, batch, shuffle=True, collate_fn=dataset.collate):
                pass

        ready = dataset.loader(batch, shuffle=True)
        runs = {"internal": internal, "dataset.loader()": threaded}
        for workers in WORKERS:
            runs[f"dataset.collate, {workers} workers"] = through(dataset.collate, workers)
            runs[f"default collate, {workers} workers"] = through(None, workers)
        seconds = compare(runs, repeat=9)
        reads = compare({"internal": alone, "DataLoader": alone_by_loader}, repeat=15)
    base = seconds.pop("internal")
    return {
        "internal, µs a clip": round(1e6 * base / clips, 1),
        "times the internal loader's": {name: round(taken / base, 2) for name, taken in seconds.items()},
        "reading alone": round(reads["DataLoader"] / reads["internal"], 2),
    }


def measure() -> Iterator[tuple[str, Any]]:
    """All cases."""
    return ((name, measure_case(*case)) for name, case in CASES.items())


if __name__ == "__main__":
    main("dataset", measure, __doc__ or "")
