"""Tiny caches of any streams, each in a shard of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from kdcache.manifest import validate
from kdcache.store import Record, commit_shard, update_index

JPEG = {"stream": "rgb", "layout": "jpeg", "dtype": "uint8", "quality": 95}
RAW = {"stream": "rgb", "layout": "ragged", "dtype": "uint8"}
FLOW = {"stream": "flow", "layout": "ragged", "dtype": "uint8", "bound": 20.0, "flow": {"algorithm": "tvl1"}}
IDT = {"stream": "idt", "layout": "ragged", "dtype": "uint8", "idt": {"algorithm": "idt"}}


def features(stream: str, layer: str | None = None, views: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """Recipe of a backbone's features; ``stream`` is ``backbone/layer``."""
    name, _, short = stream.partition("/")
    backbone = {"name": name, "layer": layer or short, "precision": "fp32", "weights": {"spec": "random:0", "rule": 1}}
    recipe = {"stream": stream, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    if views is not None:
        recipe["views"] = {"size": 224, "resize": 256, "names": list(views)}
    return recipe | more


def imported(stream: str, shape: Sequence[int], axes: str | None = None) -> dict[str, Any]:
    """Recipe of what ``kdcache import`` writes."""
    recipe = {"stream": stream, "layout": "fixed", "dtype": "float16", "imported": {"file": "x"}, "shape": list(shape)}
    return recipe | ({"axes": axes} if axes else {})


def jpegs(frames: Any) -> list[bytes]:
    """RGB frames as JPEG files."""
    return [cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for frame in frames]


def rows(train: int = 12, validation: int = 4, test: int = 4, **columns: Any) -> pd.DataFrame:
    """Manifest rows of numbered clips of two classes that take turns."""
    made = []
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        for i in range(count):
            row = {"clip_id": f"{split}-{i:02d}", "source": f"{split}{i}.mp4", "start_s": None, "stop_s": None}
            made.append(row | {"split": split, "label": 7 * (i % 2)} | columns)
    return validate(pd.DataFrame(made))


def write(
    folder: Path,
    table: pd.DataFrame,
    streams: Sequence[tuple[dict[str, Any], Sequence[Any]]],
    frames: Mapping[str, Any] | None = None,
) -> Path:
    """Commit streams (recipe and one payload a row, None = not cached), each as a shard, and index them.

    ``frames``: stream → the source frames of each of its clips; 0 to 3 for the others.
    """
    located: dict[str, Any] = {}
    clips = [{k: v for k, v in row.items() if pd.notna(v)} for row in table.to_dict("records")]
    for recipe, payloads in streams:
        stream = recipe["stream"]
        records = [
            Record(
                clip=clip,
                origin={},
                keys={stream: hashlib.md5(f"{stream}{clip['clip_id']}".encode()).hexdigest()},
                frames={stream: np.asarray((frames or {}).get(stream, range(4)), np.int32)},
                arrays={stream: payload},
            )
            for clip, payload in zip(clips, payloads, strict=True)
            if payload is not None
        ]
        located |= commit_shard(folder, records, {stream: recipe}).located
    update_index(folder, table, located)
    return folder


def shard_of(folder: Path, stream: str) -> Path:
    """The file that holds a stream."""
    index = pd.read_csv(folder / "manifest.csv")
    return folder / str(index[f"{stream}:shard"].dropna().iloc[0])
