"""Two versions side by side: ``python benchmarks/versions.py OLD [NEW] [--write]``, each a checkout; NEW is this one.

The same jobs through the public interface, each in its own process, old and new in turn: extraction, reading, training
of anticipation and of early recognition from memory and from the shards, and the start of the command line. A ratio is
new / old, the median over turns of processor seconds (user and system) and of wall seconds; below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_results

JOBS = ("start", "extract", "read", "train", "train streamed", "early", "early streamed")

JOB = """
import json, resource, sys, time
from pathlib import Path
import numpy as np

name, folder = sys.argv[1], Path(sys.argv[2])
began = None

def start():
    global began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    began = usage.ru_utime + usage.ru_stime, time.perf_counter()

def stop():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu, wall = usage.ru_utime + usage.ru_stime - began[0], time.perf_counter() - began[1]
    print(json.dumps({"cpu": cpu, "wall": wall}))

def cache(stream, backbone, layer, shape, clips, roles):
    import pandas as pd
    from kdcache.manifest import validate
    from kdcache.store import Record, commit_shard, update_index
    weights = {"spec": "random:0", "rule": 1}
    recipe = {"stream": stream, "layout": "fixed", "dtype": "float16"}
    recipe["backbone"] = {"name": backbone, "layer": layer, "precision": "fp32", "weights": weights}
    if len(shape) == 2:
        recipe |= {"progress": {"levels": shape[0], "mode": "segment"}, "sampling": {"frames": 8}}
        recipe |= {"views": {"size": 224, "names": ["centre"]}}
    rng = np.random.default_rng(0)
    rows = []
    for i in range(clips):
        split = ["train", "train", "train", "validation"][i % 4]
        for role in roles:
            row = {"clip_id": f"{i}{role}", "source": "a.avi", "start_s": float(i), "stop_s": i + 1.0, "label": i % 10}
            rows.append(row | {"split": split} | ({"pair": str(i), "role": role} if role else {}))
    table = validate(pd.DataFrame(rows))
    records = [
        Record(row, {}, {stream: f"{n:032x}"}, {stream: np.arange(32, dtype=np.int32)},
               {stream: rng.random((1, *shape), np.float32).astype(np.float16)})
        for n, row in enumerate(rows)
    ]
    update_index(folder / "cache", table, commit_shard(folder / "cache", records, {stream: recipe}).located)
    return folder / "cache"

import torch
torch.set_num_threads(1)
import kdcache
if name == "extract":
    from kdcache.demo.scene import make_dataset
    rows = make_dataset(folder / "data", 1, 0)
    streams, weights = ["i3d-rgb/mixed4a", "rgb", "flow"], {"i3d-rgb": "random:0"}
    kdcache.extract(rows.head(2), folder / "data", folder / "warm", streams, weights, size=112, short_side=96)
    start()
    kdcache.extract(rows, folder / "data", folder / "out", streams, weights, size=112, short_side=96)
    stop()
elif name == "read":
    opened = kdcache.Cache(cache("i3d-rgb/mixed4a", "i3d-rgb", "MaxPool3d_4a_3x3", (480, 8, 7, 7), 300, ("",)))
    ids = list(opened.clips["clip_id"])
    rng = np.random.default_rng(0)
    opened.read("i3d-rgb/mixed4a", ids[:8])
    start()
    for _ in range(30):
        for part in np.array_split(rng.permutation(ids), 20):
            opened.read("i3d-rgb/mixed4a", part.tolist(), 0)
    stop()
else:
    streamed = {"hold": 0.0} if name.endswith("streamed") else {}
    if name.startswith("train"):
        where = cache("i3d-rgb/mixed4a", "i3d-rgb", "MaxPool3d_4a_3x3", (480, 8, 7, 7), 128, ("observed", "action"))
        options = {"head": "light", "data": "S", "batch_size": 16, "milestones": ()}
        method, epochs = "anticipation", 3
    else:
        where = cache("tsm-resnet50/clip", "tsm-resnet50", "clip", (10, 2048), 800, ("",))
        options, method, epochs = {"batch_size": 64, "milestones": ()}, "early", 3
    kdcache.train(method, where, out=folder / "warm", epochs=1, device="cpu", **options, **streamed)
    start()
    kdcache.train(method, where, out=folder / "run", epochs=epochs, device="cpu", **options, **streamed)
    stop()
"""


def run_job(checkout: Path, job: str) -> dict[str, float]:
    """Processor and wall seconds of one job with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if job == "start":
            command = ["bash", "-c", f"TIMEFORMAT='%U %S %R'; time {sys.executable} -m kdcache --help >/dev/null"]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=folder)
            user, system, wall = map(float, done.stderr.split()[-3:])
            return {"cpu": user + system, "wall": wall}
        command = [sys.executable, "-c", JOB, job, folder]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=folder)
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured


def compare_versions(old: Path, new: Path, turns: int, jobs: list[str]) -> dict[str, Any]:
    """new / old of every job."""
    found: dict[str, Any] = {}
    for job in jobs:
        times: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
        for turn in range(turns):
            both = [("old", old), ("new", new)]
            for name, checkout in both if turn % 2 == 0 else both[::-1]:
                times[name].append(run_job(checkout, job))
        row: dict[str, Any] = {}
        for kind in ("cpu", "wall"):
            medians = {name: statistics.median(each[kind] for each in runs) for name, runs in times.items()}
            best = {name: min(each[kind] for each in runs) for name, runs in times.items()}
            row[f"{kind} s, old"] = round(medians["old"], 3)
            row[f"{kind}, new / old"] = round(medians["new"] / medians["old"], 3)
            row[f"{kind}, new / old, fastest turns"] = round(best["new"] / best["old"], 3)
        found[job] = row
        print(job, json.dumps(row), flush=True)
    return found


def main() -> None:
    """Compare, print, and with ``--write`` store the ratios beside the other results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=Path(__file__).resolve().parents[1])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = compare_versions(given.old.resolve(), given.new.resolve(), given.turns, given.only)
    if given.write:
        write_results("versions", found)


if __name__ == "__main__":
    main()
