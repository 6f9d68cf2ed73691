"""What every benchmark shares: side-by-side timing, and results written with the machine they were taken on."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("KDCACHE_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
"""Real data to measure on."""
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """CPU, cores, GPU and library versions, as stored beside each result."""
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
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def options(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"measure all and store it in results/{name}.json")
    parser.add_argument("--minutes", type=float, default=4.0, help="begin no further part after so many (default 4)")
    return parser


def run(name: str, parts: Iterable[tuple[str, Any]], given: argparse.Namespace) -> None:
    """Print figures part by part as they come; those of a whole run are stored with ``--write``."""
    end = math.inf if given.write else time.monotonic() + 60 * given.minutes
    found: dict[str, Any] = {}
    for part, figures in parts:
        found[part] = figures
        print(json.dumps({part: figures}, indent=2, ensure_ascii=False), flush=True)
        if time.monotonic() > end:
            print(f"{given.minutes:g} minutes have passed: what is left was not measured; --minutes takes more")
            return
    if given.write:
        write_results(name, found)


def main(name: str, measure: Callable[[], Iterable[tuple[str, Any]]], description: str) -> None:
    """Run one benchmark as a script."""
    given = options(name, description).parse_args()
    run(name, measure(), given)


def precisions() -> list[str]:
    """fp32, and bf16 where this CPU computes it; said where it does not."""
    from kdcache.runtime import cpu_computes

    if cpu_computes("bf16"):
        return ["fp32", "bf16"]
    print("bf16 is not measured: this CPU does not compute it", flush=True)
    return ["fp32"]
