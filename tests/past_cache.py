"""A tiny cache for RULSTM: vectors [1, 14, d] before an action, in which the action shows ever more clearly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdcache.manifest import validate
from kdcache.store import Record, commit_shard, update_index

STEPS = 14
PAIRS = [(0, 3), (0, 4), (2, 3), (5, 1)]
"""(verb, noun) of actions 0 … 3."""


def recipe(stream: str, width: int, steps: int = STEPS, step: float = 0.25, lag: float | None = 0.25) -> dict[str, Any]:
    """Without ``lag`` as of arrays that say nothing of time."""
    sampling = {"frames": steps} if lag is None else {"frames": steps, "step": step, "lag": lag, "fps": 30.0}
    imported = {"from": "lmdb", "origin": "test", "sampling": sampling}
    shape = [1, steps, width]
    return {"stream": stream, "version": 1, "layout": "fixed", "dtype": "float32", "shape": shape, "imported": imported}


def rows(**counts: int) -> pd.DataFrame:
    """``train=12, validation=6 …``: actions take turns; splits that begin with test have no labels."""
    made = []
    for split, count in counts.items():
        for i in range(count):
            action = i % len(PAIRS)
            known = not split.startswith("test")
            verb, noun = PAIRS[action] if known else (None, None)
            row = {"clip_id": f"{split}-{i:03d}", "uid": f"{split}-{i}", "source": f"{split}{i}.mp4", "split": split}
            row |= {"start_s": 1.0, "stop_s": 4.5, "group": f"{split}{i % 4}", "subject": f"{split}{i % 3}"}
            made.append(row | {"label": action if known else None, "verb": verb, "noun": noun})
    return validate(pd.DataFrame(made))


def vectors(table: pd.DataFrame, width: int, seed: int, steps: int = STEPS, noise: float = 0.5) -> list[np.ndarray]:
    """[1, T, d]; the class (of a test clip: its place) grows towards the action."""
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(len(PAIRS), width))
    grows = np.arange(1, steps + 1)[:, None] / steps
    actions = [int(name.rpartition("-")[2]) % len(PAIRS) for name in table["clip_id"]]
    return [(noise * rng.normal(size=(1, steps, width)) + grows * prototypes[a]).astype(np.float32) for a in actions]


def write(folder: Path, table: pd.DataFrame, widths: dict[str, int], **of_recipe: Any) -> Path:
    """Commit a stream for each name in ``widths`` and index it."""
    clips = [{k: v for k, v in row.items() if pd.notna(v)} for row in table.to_dict("records")]
    located: dict[str, Any] = {}
    for seed, (stream, width) in enumerate(widths.items()):
        how = recipe(stream, width, **of_recipe)
        records = [
            Record(
                clip=clip,
                origin={},
                keys={stream: hashlib.md5(f"{stream}{clip['clip_id']}".encode()).hexdigest()},
                frames={stream: np.arange(array.shape[1], dtype=np.int32)},
                arrays={stream: array},
            )
            for clip, array in zip(clips, vectors(table, width, seed, how["shape"][1]), strict=True)
        ]
        located |= commit_shard(folder, records, {stream: how}).located
    update_index(folder, table, located)
    return folder
