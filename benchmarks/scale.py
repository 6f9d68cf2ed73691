"""What a cache costs as it grows from ten thousand clips to a million: ``python benchmarks/scale.py [--write]``.

    python benchmarks/scale.py --clips 10000,100000

Each step runs in a process of its own, on a synthetic manifest of two streams: seconds, seconds
of processor time (on a machine that others use these count), and the peak memory of the process with its libraries.
Sources are names of files of a few bytes, of which planning looks at names, sizes and times alone. One shard of 1,000
clips is real; the others are further names of it, so opening one costs what it costs, and index and list of shards say
what a full extraction would have left. Clips are added as a finished extraction does it, by the call that writes the
index; planning them is a row of its own. Where every clip has a source of its own, as in Kinetics, what grows is the
unchanged extraction, which looks at each: it is measured once more on such a manifest. The first unchanged call holds
every clip against the index and remembers that nothing was to be done; those after it compare digests.

Targets at 1,000,000 clips: an unchanged extraction 10 s and 2 GB, opening the cache 5 s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import RESULTS, options, run
from kdcache.extraction.planning import plan_extraction
from kdcache.extraction.source_memory import Look, remember_looks
from kdcache.manifest import read_manifest
from kdcache.recipe import clip_key
from kdcache.roots import Roots
from kdcache.store import Record, commit_shard, load_index, update_index
from kdcache.store.index_digest import replace_index
from kdcache.store.shard import open_shard
from kdcache.store.shard_list import ShardSummary, save_list
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

STREAMS = ["i3d-flow/mixed4a", "i3d-rgb/mixed4a"]
WEIGHTS = {"i3d-rgb": "random:0", "i3d-flow": "random:0"}
A_SHARD, NEW = 1000, 1000  # clips of a shard, and those that are added or trained on
LINKS = 1000  # names of one file among the sources
SHAPE = (1, 4, 2, 2, 2)  # of an array: small, for none is read but the digests of one shard


def prepare(folder: Path, clips: int, a_source: int) -> None:
    """A manifest, its sources, and the cache of all its clips."""
    root, out = folder / "videos", folder / "out"
    root.mkdir()
    out.mkdir()
    number = np.arange(clips)
    names = [f"{i:07d}.mp4" for i in range(-(-clips // a_source))]
    prints = _sources(names, root, out / "sources.csv")
    rows = {
        "clip_id": [f"clip-{i:07d}" for i in range(clips)],
        "source": [names[i // a_source] for i in range(clips)],
        "start_s": (number % a_source * 2.0).tolist(),
        "stop_s": (number % a_source * 2.0 + 32 / 30).tolist(),
        "label": (number % 125).tolist(),
        "split": ["train" if i < 0.8 * NEW else "test" if i < NEW else "pretraining" for i in range(clips)],
    }
    streams = resolve(STREAMS, StreamSettings(), WEIGHTS)
    spans = list(zip((prints[s] for s in rows["source"]), rows["start_s"], rows["stop_s"], strict=True))
    keys = {s.name: [clip_key(s.digest, *span) for span in spans] for s in streams}
    rng = np.random.default_rng(0)
    records = [
        Record(
            {column: values[i] for column, values in rows.items()},
            {},
            {name: of[i] for name, of in keys.items()},
            {name: np.arange(32, dtype=np.int32) for name in keys},
            {name: rng.random(SHAPE).astype(np.float16) for name in keys},
        )
        for i in range(A_SHARD)
    ]
    done = commit_shard(out, records, {s.name: s.recipe for s in streams})
    shards = [f"shard-{i:05d}.h5" for i in range(-(-clips // A_SHARD))]
    for name in shards[1:]:
        os.link(out / shards[0], out / name)
    save_list(out, dict.fromkeys(shards, ShardSummary.of(open_shard(out / shards[0])[0])))
    places: dict[str, list[Any]] = {}
    for name in STREAMS:
        digests = [entry[3] for entry in done.located[name].values()]
        places[f"{name}:shard"] = [shards[i // A_SHARD] for i in range(clips)]
        places[f"{name}:row"] = (number % A_SHARD).tolist()
        places[f"{name}:key"] = keys[name]
        places[f"{name}:digest"] = [digests[i % A_SHARD] for i in range(clips)]
    (folder / "clips.csv").write_text(_csv(rows))
    replace_index(out, _csv(rows | places).encode())
    begins = np.arange(NEW) + 0.5
    more = {"clip_id": [f"new-{i:07d}" for i in range(NEW)], "source": names[:1] * NEW, "label": [1] * NEW}
    more |= {"start_s": begins.tolist(), "stop_s": (begins + 0.5).tolist(), "split": ["train"] * NEW}
    (folder / "more.csv").write_text(_csv({column: values + more[column] for column, values in rows.items()}))


def _sources(names: list[str], root: Path, memory: Path) -> dict[str, str]:
    """Sources, as an earlier call has seen them, and their fingerprints, which nobody has computed."""
    looks, base, first = {}, root.resolve(), root
    for i, name in enumerate(names):
        path = f"{base}/{name}"
        if i % LINKS:
            os.link(first, path)
        else:
            first = Path(path)
            first.write_bytes(i.to_bytes(4, "little") * 16)
            state = first.stat()
        look = Look(path, state.st_size, state.st_mtime_ns, f"{i:032x}", f"{i:032x}")
        looks[look.place] = look
    remember_looks(memory, looks)
    return {name: f"{i:032x}" for i, name in enumerate(names)}


def _csv(columns: dict[str, list[Any]]) -> str:
    lines = zip(*(map(str, values) for values in columns.values()), strict=True)
    return "".join(f"{','.join(line)}\n" for line in [tuple(columns), *lines])


def _extract(folder: Path) -> None:
    from kdcache.extraction.run import extract

    report = extract(folder / "clips.csv", folder / "videos", folder / "out", STREAMS, WEIGHTS, bar=False)
    assert report.cached == report.clips, report


def _open(folder: Path) -> None:
    from kdcache.store import Cache

    assert Cache(folder / "out").streams == STREAMS


def _train(folder: Path) -> None:
    from kdcache.data.open import open_cache
    from kdcache.methods.contract import Input

    read = Input(name="x", axes="CTHW", stream=STREAMS[1])
    opened = open_cache(folder / "out", [read], device="cpu", memory_fraction=0.0)
    sizes = {split: len(part) for split, part in opened.examples.splits.items()}
    assert sizes["train"] + sizes["validation"] + sizes["test"] == NEW, sizes


def _plan(folder: Path) -> None:
    rows, roots = read_manifest(folder / "more.csv", folder / "videos"), Roots.of(folder / "videos")
    streams = resolve(STREAMS, StreamSettings(), WEIGHTS)
    plan = plan_extraction(rows, streams, roots, None, folder / "out", 1)
    assert plan.tasks == NEW, plan.tasks


def _add(folder: Path) -> None:
    new = range(10_000_000, 10_000_000 + NEW)
    table = {"source": "new.mp4", "start_s": np.arange(NEW) * 2.0, "stop_s": np.arange(NEW) * 2.0 + 1, "label": 1}
    rows = pd.DataFrame({"clip_id": [f"clip-{i:07d}" for i in new], **table, "split": "train"})
    rows = rows.astype({"label": "Int64"})
    places = {c: ("shard-00000.h5", i, f"{i:032x}", "0" * 32) for i, c in enumerate(rows["clip_id"])}
    update_index(folder / "out", rows, dict.fromkeys(STREAMS, places))


STEPS: dict[str, Callable[[Path], Any]] = {
    "read the manifest": lambda folder: read_manifest(folder / "clips.csv", folder / "videos"),
    "unchanged extraction": _extract,
    "the same again": _extract,
    "open the cache": _open,
    "read the whole index": lambda folder: load_index(folder / "out"),
    "start a training on 1,000 clips": _train,
    "plan 1,000 new clips": _plan,
    "add 1,000 clips to the index": _add,
}
ONE_A_SOURCE: dict[str, Callable[[Path], Any]] = {
    "unchanged extraction, one clip a source": _extract,
    "the same again, one clip a source": _extract,
}


def step(name: str, folder: Path) -> None:
    """One step, in a process of its own; what it took is printed as JSON."""
    if name == "start a training on 1,000 clips":
        import kdcache.data.open  # noqa: F401  # torch is loaded before the clock starts
    begin, used = time.perf_counter(), time.process_time()
    (STEPS | ONE_A_SOURCE)[name](folder)
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    # of this program alone; ru_maxrss may be that of the process which started it
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"seconds": round(seconds, 2), "processor s": round(processor, 2), "peak MiB": round(peak)}))


def measure(counts: list[int], a_source: int, keep: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All steps at each size."""
    for clips, (each, steps) in itertools.product(counts, ((a_source, STEPS), (1, ONE_A_SOURCE))):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), clips, each)
            for name in steps:
                command = [sys.executable, __file__, "--step", name, "--folder", folder]
                figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                figures["µs a clip"] = round(1e6 * figures["processor s"] / clips, 1)
                keep.setdefault(name, {})[clips] = figures
                yield f"{clips:,} clips, {name}", figures


def draw(figures: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Seconds and memory of each step over the number of clips."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, what in zip(picture.subplots(1, 2), ("processor s", "peak MiB"), strict=True):
        for name, sizes in figures.items():
            axes.loglog(list(sizes), [max(0.01, one[what]) for one in sizes.values()], marker="o", label=name)
        axes.set(xlabel="clips", title={"processor s": "processor time, s", "peak MiB": "peak memory, MiB"}[what])
        axes.grid(alpha=0.3)
    picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    picture.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, and with ``--write`` store and draw."""
    parser: argparse.ArgumentParser = options("scale", __doc__ or "")
    parser.add_argument("--clips", default="10000,100000,1000000", help="sizes of the cache, with commas between")
    parser.add_argument("--clips-a-source", type=int, default=100, help="of most steps; default 100")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step(given.step, given.folder)
        return
    figures: dict[str, Any] = {}
    sizes = [int(n) for n in given.clips.split(",")]
    run("scale", measure(sizes, given.clips_a_source, figures), given)
    if given.write:
        draw(figures, RESULTS / "scale.png")


if __name__ == "__main__":
    main()
