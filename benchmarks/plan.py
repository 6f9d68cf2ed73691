"""Planning an unchanged extraction of 50,000 clips: ``python benchmarks/plan.py [--write]``.

Target: at most 3 s, and no source is opened.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import common
from kdcache.extraction.run import extract
from kdcache.extraction.source_memory import fingerprint_sources
from kdcache.manifest import read_manifest, write_manifest
from kdcache.recipe import clip_key
from kdcache.roots import Roots
from kdcache.store.index import update_index
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

CLIPS, SOURCES = 50_000, 700  # EPIC-KITCHENS-100 in size
STREAMS = ["i3d-rgb/mixed4a", "i3d-flow/mixed4a"]
WEIGHTS = {"i3d-rgb": "random:0", "i3d-flow": "random:0"}


def measure() -> Iterator[tuple[str, Any]]:
    """Seconds for an unchanged second call over a full index."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "videos", Path(folder) / "out"
        root.mkdir()
        out.mkdir()
        for i in range(SOURCES):
            (root / f"{i:04d}.mp4").write_bytes(i.to_bytes(4, "little") * 1000)
        start = np.arange(CLIPS) // SOURCES * 2.0
        rows = pd.DataFrame(
            {
                "clip_id": [f"clip-{i:06d}" for i in range(CLIPS)],
                "source": [f"{i % SOURCES:04d}.mp4" for i in range(CLIPS)],
                "start_s": start,
                "stop_s": start + 32 / 30,
                "label": np.arange(CLIPS) % 125,
            }
        )
        write_manifest(rows, Path(folder) / "clips.csv")
        rows = read_manifest(Path(folder) / "clips.csv")
        prints, _ = fingerprint_sources(rows["source"].unique().tolist(), Roots.of(root), out / "sources.csv")
        (out / "shard-00000.h5").write_bytes(b"")  # only its name is looked at
        located: dict[str, dict[str, tuple[str, int, str, str]]] = {}
        for stream in resolve(STREAMS, StreamSettings(), WEIGHTS):
            located[stream.name] = {
                clip: ("shard-00000.h5", i, clip_key(stream.digest, str(prints[source]), a, b), "0" * 32)
                for i, (clip, source, a, b) in enumerate(
                    zip(rows["clip_id"], rows["source"], rows["start_s"], rows["stop_s"], strict=True)
                )
            }
        update_index(out, rows, located)
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            report = extract(Path(folder) / "clips.csv", root, out, STREAMS, WEIGHTS, bar=False)
            taken.append(time.perf_counter() - begin)
            assert report.cached == CLIPS, report
    yield from {"clips": CLIPS, "streams": len(STREAMS), "seconds": sorted(taken)[1], "target": 3.0}.items()


if __name__ == "__main__":
    common.main("plan", measure, __doc__ or "")
