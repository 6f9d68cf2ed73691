"""``benchmarks/gpu.py`` without a GPU: it says so, and its share of busy time is right where that can be known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
