"""What every benchmark shares: side-by-side timing, and results written with the machine they were taken on."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """CPU, cores, GPU and library versions, as stored beside each result."""
    import os

    import cv2
    import numpy
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": numpy.__version__,
    }


def compare(runs: dict[str, Callable[[], Any]], repeat: int = 5, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each run, taken in turn (A B A B …) so that drift of the machine hits all alike."""
    for run in runs.values():
        for _ in range(warmup):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def write_results(name: str, results: dict[str, Any]) -> None:
    """Store ``results`` with date and machine in ``benchmarks/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    content = {"date": date.today().isoformat(), "machine": machine(), "results": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main(name: str, measure: Callable[[], dict[str, Any]], description: str) -> None:
    """Run one benchmark as a script: print its results, and with ``--write`` store them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help=f"store the figures in results/{name}.json")
    write = parser.parse_args().write
    results = measure()
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if write:
        write_results(name, results)
