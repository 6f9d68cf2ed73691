"""A tiny cache for early recognition: clips whose class shows ever more clearly, written as real shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdcache.manifest import validate
from kdcache.store import Record, commit_shard, update_index

STREAM = "vacnn/pool"
CLASSES = 3
LEVELS = 5


def recipe(stream: str = STREAM, sha256: str = "0" * 64) -> dict[str, Any]:
    backbone = {
        "name": stream.partition("/")[0],
        "layer": stream.partition("/")[2],
        "precision": "fp32",
        "weights": {"sha256": sha256},
    }
    made = {"stream": stream, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    if not stream.startswith("vacnn"):  # levels of a video: each a segment of its own
        made |= {"progress": {"levels": LEVELS, "mode": "segment"}, "sampling": {"frames": 8}}
        made |= {"views": {"size": 224, "names": ["centre", "centre-flip", "tl", "br"]}}
    return made


def rows(train: int = 24, test: int = 12, validation: int = 0, unlabelled: int = 0, **columns: Any) -> pd.DataFrame:
    """Manifest rows; subjects take turns, classes too, and training clips without a label come last."""
    made = []
    splits = [("train", train), ("validation", validation), ("test", test), ("train", unlabelled)]
    for part, (split, count) in enumerate(splits):
        for i in range(count):
            row = {"clip_id": f"{split}-{part}-{i:03d}", "source": f"{split}{part}-{i}.txt", "split": split}
            row |= {"start_s": None, "stop_s": None, "subject": f"{split}{i % 4}"}
            made.append(row | {"label": 10 * (i % CLASSES) if part < 3 else None} | columns)
    return validate(pd.DataFrame(made))


def arrays(
    table: pd.DataFrame, views: int = 1, levels: int = LEVELS, width: int = 8, seed: int = 0, noise: float = 1.0
) -> list[Any]:
    """Vectors [V, N, d] in which the class (of an unlabelled clip: its place) grows with progress."""
    rng = np.random.default_rng(seed)
    prototypes = 2 * rng.normal(size=(CLASSES, width))
    grows = np.arange(1, levels + 1)[:, None] / levels
    made = []
    for place, row in enumerate(table.itertuples()):
        shown = place % CLASSES if pd.isna(row.label) else int(row.label) // 10
        made.append((noise * rng.normal(size=(views, levels, width)) + grows * prototypes[shown]).astype(np.float16))
    return made


def write(folder: Path, table: pd.DataFrame, vectors: dict[str, list[Any]], sha256: str = "0" * 64) -> Path:
    """Commit streams of vectors (None = not cached) and index them."""
    located: dict[str, dict[str, Any]] = {}
    clips = [{k: v for k, v in row.items() if pd.notna(v)} for row in table.to_dict("records")]
    for stream, each in vectors.items():
        there = [i for i, vector in enumerate(each) if vector is not None]
        records = [
            Record(
                clip=clips[i],
                origin={},
                keys={stream: hashlib.md5(f"{stream}{clips[i]['clip_id']}".encode()).hexdigest()},
                frames={stream: np.arange(each[i].shape[1], dtype=np.int32)},
                arrays={stream: each[i]},
            )
            for i in there
        ]
        located |= commit_shard(folder, records, {stream: recipe(stream, sha256)}).located
    update_index(folder, table, located)
    return folder


def cache(folder: Path, views: int = 1, noise: float = 1.0, **counts: int) -> Path:
    """All of it in one go."""
    table = rows(**counts)
    return write(folder, table, {STREAM: arrays(table, views, noise=noise)})
