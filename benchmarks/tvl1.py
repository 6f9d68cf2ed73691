"""TV-L1 against OpenCV: agreement, error against ground truth, speed on one core and two, with AVX2 alone, compilation.

Needs the shared data (KDCACHE_SHARED, default ../shared). One-core times are processor seconds of one thread,
OpenCV's and ours taken in turn; thread scaling and compilation are wall time and want a quiet machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common import SHARED, compare, main
from kdcache.motion import tvl1_pairs
from kdcache.sources import open_source

NOISE = 0.001  # grey levels
SIZE = (340, 256)
VIDEOS = (  # five pairs of each
    "videos/demo.mp4",
    "videos/v_GGSY1Qvo990.mp4",
    "videos/v_ZNVhz7ctTq0.mp4",
    "videos/v_SoccerJuggling_g23_c01.avi",
    "videos/WUzgd7C1pWA.mp4",
    "videos/SOX5yA1l24A.mp4",
    "videos/R6llTwEh07w.mp4",
    "gtea_s2/S2_Tea_C1.mp4",
    "gtea_s2/S2_Cheese_C1.mp4",
    "weizmann/run/daria_run.avi",
)
STILL = ("RubberWhale", "army", "basketball")
AVX2 = {  # what keeps both programs from AVX-512 on a machine that has it
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+popcnt,+movbe",
    "OPENCV_CPU_DISABLE": "AVX512-SKX",
}
Image = NDArray[np.uint8]
Flow = NDArray[np.float32]


def distance(a: Flow, b: Flow) -> Flow:
    difference: Flow = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1])
    return difference


def opencv(first: NDArray[Any], second: NDArray[Any]) -> Flow:
    optflow: Any = cv2.optflow
    flow: Flow = optflow.DualTVL1OpticalFlow_create().calc(first, second, None)
    return flow


def own_noise(first: Image, second: Image, flow: Flow, seed: int = 0) -> tuple[float, float]:
    """Mean and median distance that OpenCV's flow moves by when its input gets a little noise."""
    noise = np.random.default_rng(seed).normal(0, NOISE, (2, *first.shape))
    noisy = [((image + n) / 255).astype(np.float32) for image, n in zip((first, second), noise, strict=True)]
    moved = distance(opencv(*noisy), flow)
    return float(moved.mean()), float(np.median(moved))


def still_pair(name: str) -> tuple[Image, Image]:
    images = [cv2.imread(str(SHARED / "flow" / f"{name}{k}.png"), cv2.IMREAD_GRAYSCALE) for k in (1, 2)]
    if images[0] is None or images[1] is None:
        raise SystemExit(f"{SHARED}/flow/{name}1.png and {name}2.png are missing: set KDCACHE_SHARED (CONTRIBUTING.md)")
    return np.asarray(images[0], np.uint8), np.asarray(images[1], np.uint8)


def video_pairs() -> list[tuple[str, Image, Image]]:
    """Five pairs of neighbouring frames, spread over each video, grey at 340 × 256."""
    pairs = []
    for name in VIDEOS:
        with open_source(SHARED / name) as source:
            starts = np.linspace(0, len(source.times) - 2, 7).astype(int)[1:-1]
            indices = np.unique([starts, starts + 1])
            frames = dict(zip(indices.tolist(), source.read(indices), strict=True))
        gray = {k: cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), SIZE) for k, f in frames.items()}
        pairs += [(name, np.asarray(gray[k], np.uint8), np.asarray(gray[k + 1], np.uint8)) for k in starts.tolist()]
    return pairs


def processor_seconds(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median processor seconds of runs that stay in this thread, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            taken[name].append(time.thread_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure_pair(first: Image, second: Image, repeat: int) -> dict[str, float]:
    """Seconds of both on one core, taken in turn, and how far apart the results are."""
    flows: dict[str, Flow] = {}
    seconds = processor_seconds(
        {
            "opencv": lambda: flows.update(opencv=opencv(first, second)),
            "cpu": lambda: flows.update(cpu=tvl1_pairs(first[None], second[None], threads=1)[0]),
        },
        repeat,
    )
    theirs = flows["opencv"]
    apart = distance(flows["cpu"], theirs)
    mean, median = own_noise(first, second, theirs)
    return {
        "opencv_s": seconds["opencv"],
        "cpu_s": seconds["cpu"],
        "ratio": seconds["opencv"] / seconds["cpu"],
        "mean_px": float(apart.mean()),
        "median_px": float(np.median(apart)),
        "largest_px": float(apart.max()),
        "opencv_under_noise_mean_px": mean,
        "opencv_under_noise_median_px": median,
    }


def truth() -> dict[str, float]:
    """End-point error on RubberWhale, pixels of unknown flow left out."""
    first, second = still_pair("RubberWhale")
    flow = np.fromfile(SHARED / "flow" / "RubberWhale.flo", np.float32, offset=12).reshape(*first.shape, 2)
    known = (np.abs(flow) < 1e9).all(-1)
    ours, theirs = tvl1_pairs(first[None], second[None])[0], opencv(first, second)
    return {
        "cpu_epe_px": float(distance(ours, flow)[known].mean()),
        "opencv_epe_px": float(distance(theirs, flow)[known].mean()),
    }


def totals(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Of the pairs of all videos."""
    total = {key: sum(row[key] for row in rows) for key in ("opencv_s", "cpu_s")}
    ratios = sorted(row["ratio"] for row in rows)
    return {
        "pairs": len(rows),
        "opencv_ms_a_pair": 1000 * total["opencv_s"] / len(rows),
        "cpu_ms_a_pair": 1000 * total["cpu_s"] / len(rows),
        "ratio_of_totals": total["opencv_s"] / total["cpu_s"],
        "ratio_lowest_median_highest": [ratios[0], statistics.median(ratios), ratios[-1]],
        "pairs_identical": sum(row["largest_px"] == 0 for row in rows),
        "mean_px": statistics.mean(row["mean_px"] for row in rows),
        "worst_mean_px": max(row["mean_px"] for row in rows),
        "worst_median_px": max(row["median_px"] for row in rows),
        "largest_px": max(row["largest_px"] for row in rows),
        "opencv_under_noise_mean_px": statistics.mean(row["opencv_under_noise_mean_px"] for row in rows),
        "pairs_beyond_1.5_noise": sum(row["mean_px"] > 1.5 * row["opencv_under_noise_mean_px"] for row in rows),
    }


def scaling(pairs: list[tuple[str, Image, Image]]) -> dict[str, Any]:
    """The same pairs with one thread and two, and whether the bytes agree."""
    first, second = np.stack([p[1] for p in pairs]), np.stack([p[2] for p in pairs])
    flows: dict[int, Flow] = {}

    def run(threads: int) -> None:
        flows[threads] = tvl1_pairs(first, second, threads=threads)

    seconds = compare({"one": lambda: run(1), "two": lambda: run(2)}, repeat=5)
    return {
        "pairs": len(pairs),
        "one_thread_s": seconds["one"],
        "two_threads_s": seconds["two"],
        "scaling": seconds["one"] / seconds["two"],
        "same_bytes": flows[1].tobytes() == flows[2].tobytes(),
    }


COMPILE = """
import time
import numpy as np
from kdcache.motion import tvl1
import kdcache.motion.tv_l1.cpu
start = time.perf_counter()
flow = tvl1(np.random.default_rng(0).integers(0, 256, (2, 40, 50), np.uint8))
print(time.perf_counter() - start, hash(flow.tobytes()))
"""


def compilation() -> dict[str, Any]:
    """Seconds of the first call with an empty and with a filled cache, in new processes."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONHASHSEED": "0"}
        for _ in range(2):
            command = [sys.executable, "-c", COMPILE]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            results.append(done.stdout.split())
    return {
        "fresh_s": float(results[0][0]),
        "cached_s": float(results[1][0]),
        "same_bytes": results[0][1] == results[1][1],
    }


def digest(flow: Flow) -> str:
    return hashlib.sha256(flow.tobytes()).hexdigest()


def settle() -> None:
    """One thread for OpenCV; ours compiled or loaded before anything is timed."""
    cv2.setNumThreads(1)
    tvl1_pairs(*(np.zeros((1, 32, 32), np.uint8),) * 2)


def still_times() -> dict[str, dict[str, Any]]:
    """Seconds of both on the still pairs, OpenCV's taken once, and a digest of our flow."""
    settle()
    rows: dict[str, dict[str, Any]] = {}
    for name in STILL:
        first, second = still_pair(name)
        flow = tvl1_pairs(first[None], second[None], threads=1)
        seconds = processor_seconds({"opencv_s": partial(opencv, first, second)}, repeat=1)
        seconds |= processor_seconds({"cpu_s": partial(tvl1_pairs, first[None], second[None], threads=1)}, repeat=5)
        rows[name] = {**seconds, "ratio": seconds["opencv_s"] / seconds["cpu_s"], "flow": digest(flow)}
    return rows


def with_avx2_alone() -> dict[str, Any]:
    """Both programs kept from AVX-512, in a process of their own: emulates a machine that has none."""
    program = "import json, cv2, tvl1; print(cv2.getCPUFeaturesLine()); print(json.dumps(tvl1.still_times()))"
    command = [sys.executable, "-c", program]
    folder = Path(__file__).parent
    done = subprocess.run(command, env={**os.environ, **AVX2}, cwd=folder, capture_output=True, text=True, check=True)
    features, printed = done.stdout.splitlines()[-2:]
    rows = json.loads(printed)
    here = [digest(tvl1_pairs(first[None], second[None])) for first, second in map(still_pair, STILL)]
    same = here == [rows[name].pop("flow") for name in STILL]
    return {"emulated": True, "opencv_features": features, **rows, "same_bytes_as_here": same}


def measure() -> Iterator[tuple[str, Any]]:
    settle()
    for name in STILL:
        yield f"still pair {name}", measure_pair(*still_pair(name), repeat=3)
    yield "still pairs with AVX2 alone", with_avx2_alone()
    yield "RubberWhale_truth", truth()
    yield "compilation", compilation()
    pairs = video_pairs()
    yield "threads", scaling(pairs[::3])
    rows = []
    for name in VIDEOS:
        rows += [measure_pair(first, second, 1) for source, first, second in pairs if source == name]
        yield f"{name}, ratio of totals so far", totals(rows)["ratio_of_totals"]
    yield "video_340x256", totals(rows)


if __name__ == "__main__":
    main("tvl1", measure, __doc__ or "")
