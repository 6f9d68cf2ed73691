"""Features as uint8 against float16: size, error, time to read, and what training on them gives.

    python benchmarks/dtype.py DATA [--write] [--seeds 5] [--part sizes|reading|training]

DATA holds ``weizmann/<class>/<person>_<class>.avi``. Features are those of random weights at small sizes: they say what
bytes cost and lose, not how good the features are. Reading is timed side by side in one process: a float16 shard, a
uint8 shard decoded to float16 by ``Cache.read``, and uint8 as training reads it, with the files in the page cache and
with their pages dropped before (``posix_fadvise``; what the disk or its host caches below stays). Training gives, for
each task, the difference uint8 − float16 of the test metric over equal seeds with a 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import kdcache
from common import compare, write_results
from kdcache.data.quantised import QuantisedStream
from kdcache.data.stream import CachedStream, MemoryBudget
from kdcache.extraction.plan import json_rows
from kdcache.log import quiet
from kdcache.manifest import validate
from kdcache.store import Cache, Record, commit_shard, update_index
from kdcache.store.quantised import quantise
from kdcache.store.shard import Shard
from kdcache.streams import axes_of
from kdcache.streams.sharing import shared_axes

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # by number of seeds
TEST = ("ido", "ira")
SETTINGS: dict[str, Any] = {"bar": False, "workers": 1}
STREAMS: dict[str, dict[str, Any]] = {  # stream → settings
    "i3d-rgb/mixed4a": {"size": 112, "frames": 16, "weights": {"i3d-rgb": "random:0"}},
    "resnet34/layer4": {"size": 112, "frames": 4, "weights": {"resnet34": "random:0"}},
    "tsm/pool": {"size": 64, "levels": 5, "weights": {"tsm-resnet50": "random:0"}},
    "tsm/clip": {"size": 64, "levels": 5, "weights": {"tsm-resnet50": "random:0"}},
}
MEASURED = ("i3d-rgb/mixed4a", "resnet34/layer4", "tsm/pool")  # of these, sizes and reading
DTYPES = {"float16": ("float16", None), "float16, zstd": ("float16", "zstd"), "uint8": ("uint8", None),
          "uint8, zstd": ("uint8", "zstd")}  # fmt: skip


@dataclass(frozen=True)
class Clips:
    """Weizmann's clips of the first so many classes."""

    root: Path
    classes: int | None

    def manifest(self, *, pairs: bool = False) -> pd.DataFrame:
        """Two people for testing; as pairs of what lies from 0.2 s and from 0.9 s on."""
        rows: list[dict[str, Any]] = []
        names = sorted(p.name for p in self.root.iterdir() if p.is_dir())
        for label, name in enumerate(names[: self.classes]):
            for file in sorted((self.root / name).glob("*.avi")):
                person = file.stem.split("_")[0]
                split = "test" if person in TEST else "train"
                row = {"clip_id": file.stem, "source": f"{name}/{file.name}", "start_s": None, "stop_s": None,
                       "label": label, "split": split, "subject": person}  # fmt: skip
                if not pairs:
                    rows.append(row)
                    continue
                for role, start in (("observed", 0.2), ("action", 0.9)):
                    span = {"start_s": start, "stop_s": start + 0.5, "role": role, "pair": file.stem}
                    rows.append(row | span | {"clip_id": f"{file.stem}-{role}"})
        return validate(pd.DataFrame(rows))


def extract(data: Clips, out: Path, stream: str, dtypes: dict[str, Any], *, pairs: bool = False) -> dict[str, Cache]:
    """A cache of one stream for each dtype: extracted once as float32, and stored as extraction would store each."""
    settings = STREAMS[stream] | SETTINGS | {"dtype": "float32"}
    rows = data.manifest(pairs=pairs)
    kdcache.extract(rows, root=data.root, out=out / "float32", streams=[stream], **settings)
    cache = Cache(out / "float32")
    return {name: _stored_as(cache, out / name.replace(", ", "-"), stream, *how) for name, how in dtypes.items()}


def _stored_as(cache: Cache, out: Path, stream: str, dtype: str, codec: str | None) -> Cache:
    ids = cache.clips["clip_id"].tolist()
    recipe = cache.recipe(stream) | {"dtype": dtype}
    arrays: list[Any] = [array.astype(dtype) for array in cache.read(stream, ids)] if dtype != "uint8" else []
    if dtype == "uint8":
        axes = axes_of(recipe) or ""
        shared = shared_axes(axes, cache.shape(stream))
        recipe |= {"quantised": {"steps": 255, "shared": shared}}
        arrays = [quantise(array, [axes.index(letter) for letter in shared]) for array in cache.read(stream, ids)]
    rows = zip(json_rows(cache.clips), ids, arrays, cache.frames(stream, ids), strict=True)
    records = [
        Record(row, {}, {stream: hashlib.md5(clip.encode()).hexdigest()}, {stream: frames}, {stream: array})
        for row, clip, array, frames in rows
    ]
    update_index(out, cache.clips, commit_shard(out, records, {stream: recipe}, codec=codec).located)
    return Cache(out)


def errors(cache: Cache, stream: str) -> list[float]:
    """The relative error of each clip, as stored."""
    found = [Shard.open(path).stored(stream).errors for path in sorted(cache.path.glob("*.h5"))]
    return [float(e) for each in found if each is not None for e in each]


def sizes(data: Clips, folder: Path) -> dict[str, Any]:
    """kB a clip and error of each stream."""
    results: dict[str, Any] = {}
    for stream in MEASURED:
        caches = extract(data, folder / stream.replace("/", "-"), stream, DTYPES)
        size = {n: sum(p.stat().st_size for p in c.path.glob("*.h5")) / len(c.clips) for n, c in caches.items()}
        lost = errors(caches["uint8"], stream)
        results[stream] = {
            "shape of a clip": list(caches["uint8"].shape(stream)),
            "kB a clip": {name: round(nbytes / 1e3, 2) for name, nbytes in size.items()},
            "times smaller than float16": {name: round(size["float16"] / nbytes, 2) for name, nbytes in size.items()},
            "error, % of the norm": {"mean": round(100 * float(np.mean(lost)), 3), "max": round(100 * max(lost), 3)},
        }
    return results


def drop_pages(cache: Cache) -> None:
    """Have a cache's files read from the disk again."""
    for path in cache.path.glob("*.h5"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def reading(data: Clips, folder: Path, repeat: int) -> dict[str, Any]:
    """Times float16's time, and its MB/s of decoded float16."""
    return {stream: _reading(data, folder / stream.replace("/", "-"), stream, repeat) for stream in MEASURED}


def _reading(data: Clips, folder: Path, stream: str, repeat: int) -> dict[str, Any]:
    """Of one stream, in random order and batches of 16."""
    caches = extract(data, folder, stream, DTYPES)
    ids = caches["float16"].clips["clip_id"].tolist()
    order = np.random.default_rng(0).permutation(np.arange(4 * len(ids)) % len(ids))
    rows = torch.split(torch.from_numpy(order), 16)

    def read(cache: Cache, cold: bool) -> Callable[[], None]:
        def run() -> None:
            for at in rows:
                if cold:
                    drop_pages(cache)
                cache.read(stream, [ids[i] for i in at.tolist()])

        return run

    def train(cache: Cache) -> Callable[[], None]:
        packing, budget, device = cache.packing(stream), MemoryBudget(0), torch.device("cpu")
        plain = CachedStream(cache, stream, ids, device, budget)
        made = plain if packing is None else QuantisedStream(cache, stream, packing, ids, device, budget)

        def run() -> None:
            for at in rows:
                made.to_device(made.fetch(at, torch.zeros_like(at), at))

        return run

    nbytes = len(order) * math.prod(caches["float16"].shape(stream)) * 2
    results = {}
    for how in ("page cache", "disk"):
        seconds = compare({name: read(cache, how == "disk") for name, cache in caches.items()}, repeat)
        results[how] = _against(seconds, nbytes)
    seconds = compare({name: train(cache) for name, cache in caches.items()}, repeat)
    return results | {"batches as training reads them": _against(seconds, nbytes)}


def _against(seconds: dict[str, float], nbytes: int) -> dict[str, Any]:
    base = seconds["float16"]
    return {
        "float16, MB/s": round(nbytes / base / 1e6),
        "times float16's time": {name: round(taken / base, 2) for name, taken in seconds.items()},
    }


TASKS: dict[str, dict[str, Any]] = {  # task → stream, whether of pairs, options, where the metric is found
    "early, tsm/clip": {
        "method": "early", "stream": "tsm/clip", "metric": "auc",
        "options": {"hidden": 32, "teacher_hidden": 16, "epochs": 40, "batch_size": 16},
    },
    "anticipation, i3d-rgb/mixed4a": {
        "method": "anticipation", "stream": "i3d-rgb/mixed4a", "metric": "top1", "pairs": True,
        "options": {"head": "light", "width": 32, "epochs": 15, "batch_size": 16},
    },
    "linear classifier, resnet34/layer4": {"method": "linear", "stream": "resnet34/layer4", "metric": "top1"},
}  # fmt: skip


def training(data: Clips, folder: Path, seeds: int) -> dict[str, Any]:
    """uint8 − float16 of each task's test metric."""
    results: dict[str, Any] = {}
    for task, how in TASKS.items():
        base = folder / f"task-{len(results)}"
        dtypes = {name: DTYPES[name] for name in ("float16", "uint8")}
        caches = extract(data, base, how["stream"], dtypes, pairs=how.get("pairs", False))
        scores = {
            name: [_score(how, cache.path, base / f"run-{name}-{seed}", seed) for seed in range(seeds)]
            for name, cache in caches.items()
        }
        difference = np.subtract(scores["uint8"], scores["float16"])
        half = T_95.get(seeds, 1.96) * float(difference.std(ddof=1)) / math.sqrt(seeds)
        mean = float(difference.mean())
        results[task] = {
            "metric": how["metric"],
            "float16": _spread(scores["float16"]),
            "uint8": _spread(scores["uint8"]),
            "difference, 95 % interval": [round(mean - half, 2), round(mean + half, 2)],
            "seeds": seeds,
        }
    return results


def _score(how: dict[str, Any], shards: Path, out: Path, seed: int) -> float:
    """The metric on test clips, at the last epoch."""
    if how["method"] == "linear":
        return linear(shards, how["stream"], seed)
    with quiet():
        run = kdcache.train(how["method"], shards, out=out, seed=seed, device="cpu", **how["options"])
    found: dict[str, float] = run.metrics["last"]["test"]["label"]
    return found[next(name for name in found if name.lower().startswith(how["metric"]))]


def linear(shards: Path, stream: str, seed: int, epochs: int = 60) -> float:
    """Test accuracy of logistic regression on maps averaged over time and positions."""
    torch.manual_seed(seed)
    cache = kdcache.Cache(shards)
    train, test = (cache.dataset(stream, split=split, validation=0, dtype=torch.float32) for split in ("train", "test"))
    network = torch.nn.Linear(train.shapes[stream][1], len(train.classes["label"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in train.loader(16, shuffle=True):
            loss = torch.nn.functional.cross_entropy(network(batch[stream].mean((1, 3, 4))), batch["label"])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        (batch,) = test.loader(len(test))
        right = network(batch[stream].mean((1, 3, 4))).argmax(1) == batch["label"]
    return 100 * float(right.float().mean())


def _spread(scores: Sequence[float]) -> str:
    return f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}"


def main() -> None:
    """Run the parts asked for; each is stored beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true", help="store the figures in results/dtype-PART.json")
    parser.add_argument("--classes", type=int, help="take the first so many classes only")
    parser.add_argument("--repeat", type=int, default=15, help="times that each kind of reading is timed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=["sizes", "reading", "training"], action="append")
    arguments = parser.parse_args()
    data = Clips(arguments.data / "weizmann", arguments.classes)
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "sizes": lambda folder: sizes(data, folder),
        "reading": lambda folder: reading(data, folder, arguments.repeat),
        "training": lambda folder: training(data, folder, arguments.seeds),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.part or parts:
            found = parts[name](Path(folder))
            found = {"clips": len(data.manifest()), **found}
            print(json.dumps({name: found}, indent=2, ensure_ascii=False))
            if arguments.write:
                write_results(f"dtype-{name}", found)


if __name__ == "__main__":
    main()
