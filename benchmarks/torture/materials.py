"""What the commands work on: small videos, folders of frames, features, and a network of one convolution."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache import backbones
from kdcache.backbones import InputSpec
from kdcache.backbones.framewise import Framewise
from kdcache.manifest import validate, write_manifest
from kdcache.methods import recognition_options
from kdcache.store import Record, commit_shard, update_index
from kdcache.store.quantised import Quantised

TINY = "tiny"
FEATURE, RAGGED, PICTURES, CODES, PACKED = "vacnn/pool", "flow", "rgb", "i3d-rgb/mixed4a", "tsm/pool"
LEVELS, CLASSES = 5, 3
CLIPS, BROKEN = 12, "clip11"
"""Of ``videos``: how many, and the one that is no video."""
SEED = 5  # of everything here: materials are the same in every run


class Tiny(Framewise):
    """One convolution and a classifier on its mean."""

    classifier = ("fc.weight", "fc.bias")
    order = ("pool", "logits")
    owners = {"logits": "fc"}  # noqa: RUF012

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.Linear(8, classes)

    def endpoints(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See ``Framewise``."""
        pooled = torch.relu(self.bn(self.conv(images))).mean((2, 3))
        yield "pool", pooled
        yield "logits", self.fc(pooled)


def register() -> None:
    """Make the backbone ``tiny`` known to this process and its forks: 2 frames of 24 pixels, fitted as TSM is."""
    module: Any = ModuleType("kdcache.backbones.tiny")
    module.make = lambda spec, classes=None: Tiny(classes or 10)
    layers: Any = ModuleType("kdcache.backbones.tiny_layers")
    layers.ORDER = Tiny.order
    layers.resolve = lambda layer: layer
    layers.axes = lambda layer: "TD"
    layers.shape = lambda layer, channels, frames, size, num_classes=10: (frames, num_classes if "log" in layer else 8)
    sys.modules |= {module.__name__: module, layers.__name__: layers}
    spec = InputSpec("rgb", frames=2, size=24, resize=28)
    backbones.REGISTRY[TINY] = backbones.BackboneEntry(TINY, spec)
    recipes = recognition_options.RECIPES
    recognition_options.RECIPES = {**recipes, TINY: {**recipes["tsm-resnet50"], "dropout": 0.25}}


def make(folder: Path) -> Path:
    """All materials below a folder, once."""
    if not (folder / "made").exists():
        videos(folder / "videos")
        features(folder / "features", shards=3)
        (folder / "made").touch()
    return folder


def videos(root: Path) -> None:
    """Nine folders of frames, two videos, and one file that is no video, with their manifest ``clips.csv``."""
    rng, rows = np.random.default_rng(SEED), []
    for number in range(CLIPS):
        coarse = rng.integers(0, 160, (8, 6 + number, 11, 3))
        coarse[..., number % CLASSES] += 60
        frames = coarse.repeat(6, 1)[:, :36].repeat(4, 2)
        name = f"clip{number:02d}"
        if number < 9:
            (root / name).mkdir(parents=True)
            for i, picture in enumerate(frames.astype(np.uint8)):
                cv2.imwrite(str(root / name / f"{i:03d}.png"), picture)
        elif number < 11:
            name += ".avi"
            film(root / name, frames.astype(np.uint8))
        else:
            name += ".mp4"
            (root / name).write_bytes(rng.bytes(2000))
        split = ("train", "train", "validation", "test")[number // CLASSES % 4]
        rows.append((f"clip{number:02d}", name, np.nan, np.nan, number % CLASSES, split, "10" if number < 9 else ""))
    columns = ["clip_id", "source", "start_s", "stop_s", "label", "split", "fps"]
    write_manifest(pd.DataFrame(rows, columns=columns), root / "clips.csv")


def film(path: Path, frames: NDArray[np.uint8]) -> None:
    """A video of RGB frames [T, H, W, 3], H and W even, with all of MPEG-4's kinds of error in reach."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.codec_context.thread_count = 1
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        out.mux(stream.encode(None))


def recipe(stream: str) -> dict[str, Any]:
    """One of each layout."""
    name, _, layer = stream.partition("/")
    backbone = {"name": name, "layer": layer, "precision": "fp32", "weights": {"sha256": "0" * 64}}
    if stream == RAGGED:
        return {"stream": stream, "layout": "ragged", "dtype": "uint8", "bound": 20.0}
    if stream == PICTURES:
        return {"stream": stream, "layout": "jpeg", "dtype": "uint8", "quality": 95}
    made = {"stream": stream, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    if stream == CODES:
        made |= {"dtype": "uint8", "quantised": {"bits": 8, "shared": "VC"}}
    return made


def features(folder: Path, shards: int, clips: int = 45) -> None:
    """A cache of vectors [1, levels, 8] in which the class shows ever more clearly, for ``early``."""
    rng = np.random.default_rng(SEED)
    prototypes = 2 * rng.normal(size=(CLASSES, 8))
    split = ["train"] * (clips - 21) + ["validation"] * 12 + ["test"] * 9
    table = pd.DataFrame({"clip_id": [f"clip-{i:03d}" for i in range(clips)], "split": split})
    table["source"], table["start_s"], table["stop_s"] = table["clip_id"] + ".txt", np.nan, np.nan
    table["label"] = np.arange(clips) % CLASSES
    grows = np.arange(1, LEVELS + 1)[:, None] / LEVELS
    rows = validate(table)
    records = []
    for i, row in enumerate(rows.to_dict("records")):
        vectors = 2 * rng.normal(size=(1, LEVELS, 8)) + grows * prototypes[i % CLASSES]
        clip = {str(k): v for k, v in row.items() if pd.notna(v)}
        records.append(record(clip, {FEATURE: vectors.astype(np.float16)}))
    for part in np.array_split(np.arange(clips), shards):
        done = commit_shard(folder, [records[i] for i in part], {FEATURE: recipe(FEATURE)})
        update_index(folder, rows.iloc[part].reset_index(drop=True), done.located)


def record(clip: dict[str, Any], arrays: dict[str, Any]) -> Record:
    """A clip with its arrays, as extraction would commit it."""
    name = str(clip["clip_id"])
    keys = {s: hashlib.sha256(f"{s}/{name}".encode()).hexdigest()[:32] for s in arrays}
    frames = {s: np.arange(8, dtype=np.int32) for s in arrays}
    return Record(clip, {"fingerprint": "0" * 32, "decoder": "none"}, keys, frames, arrays)


def arrays_of(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A clip of every layout: fixed, quantised, ragged (none of its fields, for some), JPEG files."""
    pictures = rng.integers(0, 255, (number % 3 + 1, 24, 32, 3), np.uint8)
    codes = rng.integers(0, 255, (2, 5, 2, 3, 3), np.uint8)
    scale, offset = (rng.uniform(0.1, 1, (2, 5, 1, 1, 1)).astype(np.float32) for _ in range(2))
    return {
        FEATURE: rng.normal(size=(1, LEVELS, 8)).astype(np.float16),
        CODES: Quantised(codes, scale, offset, 0.01),
        RAGGED: rng.integers(0, 255, (number % 4, 6, 5 + number % 2, 2), np.uint8),
        PICTURES: [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures],
    }


def all_layouts(folder: Path, clips: int = 6, seed: int = SEED, codec: str | None = None) -> None:
    """Two shards with all layouts, and their index."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"clip_id": [f"clé-{i:03d}" for i in range(clips)], "label": np.arange(clips) % CLASSES})
    table["source"], table["start_s"], table["stop_s"] = "v.mp4", np.arange(clips) * 1.5, np.arange(clips) * 1.5 + 1
    table["split"] = "train"
    rows = validate(table)
    for part in np.array_split(np.arange(clips), 2):
        clip = [{str(k): v for k, v in rows.iloc[i].to_dict().items() if pd.notna(v)} for i in part]
        records = [record(one, arrays_of(rng, int(i))) for one, i in zip(clip, part, strict=True)]
        done = commit_shard(folder, records, {s: recipe(s) for s in records[0].arrays}, codec=codec)
        update_index(folder, rows.iloc[part].reset_index(drop=True), done.located)
