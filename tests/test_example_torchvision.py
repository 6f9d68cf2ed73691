"""``examples/torchvision_features.py`` on real clips: features of two networks by two workers, a classifier on each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import kdcache

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "torchvision_features.py"


def test_two_networks_on_weizmann(shared, tmp_path):
    for name in ("bend", "run"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for person in ("daria", "ido"):
            file = f"{name}/{person}_{name}.avi"
            shutil.copy(shared / "data" / "weizmann" / file, tmp_path / "videos" / file)
    arguments = ["--held-out", "ido", "--work", tmp_path / "work", "--random", "--frames", "8", "--epochs", "5"]
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path / "videos", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cache = kdcache.Cache(tmp_path / "work" / "cache")
    assert {s: cache.shape(s) for s in cache.streams} == {
        "torchvision:s3d/pool": (1, 1024),
        "torchvision:swin3d_t/pool": (1, 768),
    }
    assert cache.recipe("torchvision:s3d/pool")["backbone"]["library"] == "torchvision"
    for run in ("torchvision-s3d", "torchvision-swin3d_t"):
        metrics = json.loads((tmp_path / "work" / run / "metrics.json").read_text())
        assert metrics["baselines"]["test"] == {"clips": 2, "chance": 50.0, "majority": 50.0}
        assert metrics["last"]["test"]["label"]["top1"] in (0, 50, 100)
