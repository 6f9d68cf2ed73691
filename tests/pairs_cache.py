"""A tiny cache of anticipation pairs with a signal to learn, written as real shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdcache.manifest import validate
from kdcache.store import Record, commit_shard, update_index

STREAM = "i3d-rgb/mixed4a"
CLASSES = 3


def recipe(stream: str = STREAM) -> dict[str, Any]:
    backbone = {"name": "i3d-rgb", "layer": "MaxPool3d_4a_3x3", "precision": "fp32"}
    backbone["weights"] = {"spec": "random:0", "rule": 1}
    return {"stream": stream, "layout": "fixed", "dtype": "float16", "backbone": backbone}


def rows(labelled: int = 40, unlabelled: int = 0, **columns: Any) -> pd.DataFrame:
    """Manifest rows of numbered pairs; every fourth labelled one is validation."""
    made = []
    for i in range(labelled + unlabelled):
        known = i < labelled
        for role in ("observed", "action"):
            row = {"clip_id": f"p{i:03d}-{role}", "source": f"video{i % 8}.avi", "start_s": float(i), "stop_s": i + 1.0}
            row |= {"split": "validation" if known and i % 4 == 3 else "train", "pair": f"p{i:03d}", "role": role}
            row |= {"label": 5 * (i % CLASSES) if known else None, "verb": (i % CLASSES) // 2 if known else None}
            made.append(row | columns)
    return validate(pd.DataFrame(made))


def arrays(table: pd.DataFrame, views: int = 1, seed: int = 0, shape: tuple[int, ...] = (480, 3, 4, 4)) -> list[Any]:
    """Maps in which a third of the positions show the class of the pair's number: clearly at x_t, faintly before."""
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(CLASSES, shape[0])).astype(np.float32)
    made = []
    for row in table.itertuples():
        strength = 1.0 if row.role == "action" else 0.5
        noise = rng.normal(size=(views, *shape)).astype(np.float32)
        shown = rng.random((views, 1, *shape[1:])) < 1 / 3
        signal = prototypes[int(row.pair[1:]) % CLASSES][None, :, None, None, None]
        made.append(np.maximum(0.5 * noise + strength * shown * signal, 0).astype(np.float16))
    return made


def write(folder: Path, table: pd.DataFrame, maps: list[Any], stream: str = STREAM, shards: int = 3) -> Path:
    """Commit the maps (None = not cached) to shards and index them."""
    located: dict[str, dict[str, Any]] = {stream: {}}
    there = [i for i, m in enumerate(maps) if m is not None]
    clips = [{k: v for k, v in row.items() if pd.notna(v)} for row in table.to_dict("records")]
    for part in np.array_split(np.array(there), shards):
        records = [
            Record(
                clip=clips[i],
                origin={},
                keys={stream: hashlib.md5(f"{stream}{clips[i]['clip_id']}".encode()).hexdigest()},
                frames={stream: np.arange(4, dtype=np.int32)},
                arrays={stream: maps[i]},
            )
            for i in part.tolist()
        ]
        located[stream] |= commit_shard(folder, records, {stream: recipe(stream)}).located[stream]
    update_index(folder, table, located)
    return folder


def cache(folder: Path, labelled: int = 40, unlabelled: int = 0, views: int = 1, **columns: Any) -> Path:
    """All of it in one go."""
    table = rows(labelled, unlabelled, **columns)
    return write(folder, table, arrays(table, views))
