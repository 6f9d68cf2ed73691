"""``benchmarks/gpu.py`` without a GPU: it says so, and its share of busy time is right where that can be known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdcache.motion.frames import frames_of
from kdcache.sources.paths import fingerprint

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_it_says_that_nothing_was_run():
    done = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "not run: no CUDA device here\n"


def test_busy_time_counts_kernels_that_overlap_once_and_no_copies(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    def event(start, end, name="kernel", kind="CUDA"):
        return SimpleNamespace(
            time_range=SimpleNamespace(start=start, end=end), name=name, device_type=SimpleNamespace(name=kind)
        )

    events = [event(4e6, 6e6), event(0, 2e6), event(1e6, 3e6), event(1e6, 2e6), event(9e6, 10e6)]
    events += [event(3e6, 4e6, "Memcpy HtoD (Pinned -> Device)"), event(-5e6, 20e6, "aten::conv3d", "CPU")]
    found = gpu.busy(SimpleNamespace(events=lambda: events))
    assert found == {"s from the first kernel to the last": 10.0, "busy": 0.6}


def test_no_two_of_its_videos_are_computed_as_one(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    monkeypatch.setattr(gpu, "FRAMES", 3)
    gpu.write_videos(tmp_path, 18, 64, 48)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 18
    assert len({fingerprint(path) for path in paths}) == 18
    first, copy = (frames_of(tmp_path / f"v{n}.mp4") for n in (1, 17))
    assert len(first) == 3
    assert np.array_equal(first, copy)


def test_figures_are_stored_one_by_one_beside_those_of_the_same_device(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    import common

    def part(figure):
        return lambda: figure if figure else pytest.fail("not asked for")

    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "One GPU")
    monkeypatch.setattr(gpu, "parts", lambda device: {"one": part(1), "two": part(2), "three": part(0)})
    stored = []
    for _ in gpu.measure("cuda", ["one", "two"], write=True):
        path = tmp_path / "gpu.json"
        stored.append(json.loads(path.read_text())["results"] if path.exists() else {})
    assert stored == [{}, {"device": "One GPU", "one": 1}, {"device": "One GPU", "one": 1, "two": 2}]
    monkeypatch.setattr(gpu, "parts", lambda device: {"three": part(3)})
    list(gpu.measure("cuda", [], write=True))
    assert json.loads((tmp_path / "gpu.json").read_text())["results"] == stored[-1] | {"three": 3}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another")
    list(gpu.measure("cuda", [], write=True))
    assert json.loads((tmp_path / "gpu.json").read_text())["results"] == {"device": "Another", "three": 3}
