"""Small caches for the tests of the store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pandas as pd

from kdcache.manifest import validate
from kdcache.recipe import canonical, digest
from kdcache.store import Committed, Record, commit_shard, update_index
from kdcache.store.hdf5_guard import ATTRIBUTES
from kdcache.store.layout import tables_digest

FEATURE, FLOW, RGB, RAW = "i3d-rgb/mixed4a", "flow", "rgb", "raw"
RECIPES: dict[str, dict[str, Any]] = {
    FEATURE: {"stream": FEATURE, "layout": "fixed", "dtype": "float16", "views": {"size": 224}},
    FLOW: {"stream": FLOW, "layout": "ragged", "dtype": "uint8", "bound": 20.0},
    RGB: {"stream": RGB, "layout": "jpeg", "dtype": "uint8", "quality": 95},
    RAW: {"stream": RAW, "layout": "ragged", "dtype": "float32"},
}
SHAPE = (2, 5, 2, 3, 3)  # V, C, T, H, W of the fixed stream


def key(*parts: Any) -> str:
    """32 hex digits that stand for a key."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def row(i: int) -> dict[str, Any]:
    """A manifest row; ids need more than ASCII."""
    stop = None if i % 5 == 4 else 0.1 + 1.5 * i
    label = None if i % 4 == 3 else i % 3
    return {
        "clip_id": f"clé-{i:03d}",
        "source": f"v{i // 3}.mp4",
        "start_s": i / 7,
        "stop_s": stop,
        "label": label,
        "hand": "left",
    }


def name(i: int) -> str:
    """The id of clip ``i``."""
    return str(row(i)["clip_id"])


def pictures(i: int) -> list[bytes]:
    """JPEG files: a red square that moves."""
    files = []
    for t in range(i % 3 + 1):
        frame = np.zeros((24, 32, 3), np.uint8)
        frame[4:20, 4 + t : 20 + t, 2] = 255  # OpenCV's order: B, G, R
        files.append(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return files


def payload(stream: str, i: int) -> Any:
    """What clip ``i`` has for a stream; clip 0 has flow without any field, as a clip of one frame."""
    rng = np.random.default_rng([i, len(stream)])
    if stream == FEATURE:
        return rng.normal(size=SHAPE).astype(np.float16)
    if stream == FLOW:
        return rng.integers(0, 255, (i % 4, 6, 5 + i % 2, 2), dtype=np.uint8)
    if stream == RGB:
        return pictures(i)
    return rng.normal(size=(i % 2 + 1, 3)).astype(np.float32)


def record(i: int, streams: tuple[str, ...] = (FEATURE, FLOW, RGB), salt: str = "") -> Record:
    """Clip ``i`` ready to be written."""
    frames = {s: np.arange(8 if s == FEATURE else i % 4 + 1, dtype=np.int32) + i for s in streams}
    origin = {"fingerprint": key("file", i // 3), "decoder": "decord 0.6.0" if i % 2 else "pyav 14.0"}
    return Record(row(i), origin, {s: key(s, i, salt) for s in streams}, frames, {s: payload(s, i) for s in streams})


def recipes(streams: tuple[str, ...] = (FEATURE, FLOW, RGB)) -> dict[str, dict[str, Any]]:
    """The recipes of those streams."""
    return {s: RECIPES[s] for s in streams}


def manifest(clips: range) -> pd.DataFrame:
    """The manifest of those clips."""
    return validate(pd.DataFrame([row(i) for i in clips]))


def add(
    folder: Path, clips: range, streams: tuple[str, ...] = (FEATURE, FLOW, RGB), codec: str | None = None
) -> Committed:
    """Write clips as one shard and put them into the index."""
    done = commit_shard(folder, [record(i, streams) for i in clips], recipes(streams), codec=codec)
    update_index(folder, manifest(clips), done.located)
    return done


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


@contextmanager
def resealed(path: Path) -> Iterator[Any]:
    """A shard opened for changes, after which its own digests, which have no key, are made to fit."""
    with h5py.File(path, "r+") as file:
        yield file
        streams = json.loads(bytes(file.attrs["recipes"]))
        file.attrs["recipe_digests"] = np.bytes_(canonical({s: digest(r) for s, r in streams.items()}))
        data = {s if r.get("layout") == "fixed" else f"{s}/data" for s, r in streams.items() if isinstance(r, dict)}
        tables: dict[str, Any] = {}

        def take(at: str, found: Any) -> None:
            if isinstance(found, h5py.Dataset) and at not in data and found.nbytes < 2**20:
                tables[at] = found[()]

        file.visititems(take)
        texts = [bytes(file.attrs[a]).decode() for a in ATTRIBUTES]
        file.attrs["tables_digest"] = np.bytes_(tables_digest(texts, tables))


def recipe_digest(stream: str) -> str:
    """The digest of a stream's recipe."""
    return digest(RECIPES[stream])


def commit_many(folder: str, start: int, shards: int) -> None:
    """A writer process: commit several shards of three clips, one after the other."""
    for n in range(shards):
        first = start + 3 * n
        commit_shard(folder, [record(i) for i in range(first, first + 3)], recipes())


def commit_forever(folder: str) -> None:
    """A writer process to be killed: says when it starts, then commits large shards until it dies."""
    rng = np.random.default_rng(os.getpid())
    array = rng.normal(size=(1, 64, 8, 14, 14)).astype(np.float16)
    recipe = {FEATURE: RECIPES[FEATURE]}
    print("ready", flush=True)
    while True:
        items = [
            Record(
                row(i), {}, {FEATURE: key(i, rng.random())}, {FEATURE: np.arange(8, dtype=np.int32)}, {FEATURE: array}
            )
            for i in range(12)
        ]
        commit_shard(folder, items, recipe)
