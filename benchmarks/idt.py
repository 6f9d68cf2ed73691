"""Improved dense trajectories: agreement with the original program, camera motion, and where the time goes.

Needs the shared data (KDCACHE_SHARED, default ../shared). Times are processor seconds of one thread.
"""

from __future__ import annotations

import cProfile
import gzip
import importlib
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from numpy.typing import NDArray

from common import SHARED, main
from kdcache.motion import tracker
from kdcache.motion.camera import check
from kdcache.motion.idt import IDTParams, to_columns, trajectories
from kdcache.motion.maps import motion_maps
from kdcache.sources import open_source

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the same moving camera and matching as the tests use
lens: Any = importlib.import_module("test_camera")
reference: Any = importlib.import_module("test_trajectories")

U8 = NDArray[np.uint8]
BOXING = "idt/person01_boxing_d1.avi"
STAGES = {
    "expansion of two images": ("_farneback.py", "expand"),
    "two flows": ("_farneback.py", "flow"),
    "SURF": ("camera.py", "__call__"),
    "matching": ("camera.py", "match"),
    "corners": ("camera.py", "good_corners"),
    "vote (RANSAC)": ("camera.py", "vote"),
    "check": ("camera.py", "check"),
    "warping back": ("camera.py", "warp_back"),
    "tracking and pruning": ("tracker.py", "_advance"),
    "sampling": ("tracker.py", "_sample"),
}


def read(name: str, count: int, first: int = 0, height: int | None = None) -> U8:
    """``count`` frames of a shared video, reduced to ``height``."""
    with open_source(SHARED / name) as source:
        last = min(first + count, len(source.times))
        frames = np.stack(list(source.read(range(first, last))))
    if height is None:
        return frames
    width = round(frames.shape[2] * height / frames.shape[1])
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames]).astype(np.uint8)


def agreement(params: IDTParams) -> dict[str, Any]:
    """Recall, precision and descriptor agreement with the original's 2,001 trajectories."""
    with gzip.open(SHARED / "idt/person01_boxing_d1.improved.gz", "rt") as file:
        original = np.loadtxt(file)
    ours = to_columns(trajectories(read(BOXING, 360), params, descriptors=True))
    pairs = reference.pair_up(ours, original)
    gap = np.abs(ours[pairs[:, 0]] - original[pairs[:, 1]])
    out: dict[str, Any] = {
        "trajectories": len(ours),
        "recall": round(len(pairs) / len(original), 5),
        "precision": round(len(pairs) / len(ours), 5),
        "F1": round(2 * len(pairs) / (len(ours) + len(original)), 5),
    }
    for name, (a, b) in reference.BLOCKS.items():
        worst = gap[:, a:b].max(axis=1)
        out[name] = {
            "share of tracks with every value within 0.01": round(float((worst <= 0.01).mean()), 4),
            "share of values within 0.01": round(float((gap[:, a:b] <= 0.01).mean()), 5),
            "median of the worst value": float(f"{np.median(worst):.2g}"),
        }
    return out


def moving_camera(name: str, first: int, height: int | None, window: tuple[int, int], kind: str) -> dict[str, Any]:
    """A still clip filmed by a camera that moves by known homographies: what of it is taken for motion."""
    still = read(name, 45, first, height)
    centre = (still.shape[2] / 2, still.shape[1] / 2)
    moves = [lens.camera(kind, t, centre, window) for t in range(len(still))]
    clip = lens.film(still, moves, size=window)
    maps = motion_maps(still)
    around = [cv2.dilate(maps[max(0, t - 2) : t + 3].max(axis=0), np.ones((17, 17))) for t in range(len(maps))]
    person = lens.film(maps, moves, cv2.INTER_NEAREST, window) > 0
    ground = lens.film(np.stack(around), moves, cv2.INTER_NEAREST, window) == 0
    found: list[Any] = []

    def spy(*args: Any) -> Any:
        found.append(check(*args))
        return found[-1]

    with mock.patch.object(tracker, "check", spy):
        moving = motion_maps(clip) > 0
    true = [np.linalg.inv(b) @ a for a, b in pairwise(moves)]
    error = [lens.corner_error(f, t, *window) for f, t in zip(found, true, strict=True)]

    def wrong(of: NDArray[np.bool_]) -> float:
        return round(float((of & ground).sum() / ground.sum()), 4)

    return {
        "background taken for moving": wrong(moving),
        "… with the original's vote alone": wrong(motion_maps(clip, IDTParams(camera="original")) > 0),
        "… with the camera taken for still": wrong(motion_maps(clip, IDTParams(camera="still")) > 0),
        "moving people found": round(float((moving & person).sum() / person.sum()), 4),
        "median move of the frame's corners, px": round(
            float(np.median([lens.corner_error(np.eye(3), t, *window) for t in true])), 2
        ),
        "median error of the homography at the corners, px": round(float(np.median(error)), 2),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def stock_flows(clip: U8) -> None:
    """OpenCV's own Farnebäck flow, twice a pair over a like pyramid: a yardstick for the same machine."""
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip]
    for a, b in pairwise(gray):
        for _ in range(2):
            start = np.zeros((*a.shape, 2), np.float32)
            cv2.calcOpticalFlowFarneback(a, b, start, 0.7071, 4, 10, 2, 7, 1.5, cv2.OPTFLOW_FARNEBACK_GAUSSIAN)


def speed(clip: U8) -> dict[str, Any]:
    """Milliseconds a frame, runs interleaved, the best of three; and how they are spent."""
    runs: dict[str, Callable[[], Any]] = {
        "trajectories": lambda: trajectories(clip),
        "… with SIFT in place of SURF": lambda: trajectories(clip, IDTParams(features="sift")),
        "… with descriptors": lambda: trajectories(clip, descriptors=True),
        "… motion maps": lambda: motion_maps(clip),
        "yardstick: two stock OpenCV flows alone": lambda: stock_flows(clip),
    }
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    out: dict[str, Any] = {name: round(min(t) / len(clip) * 1e3, 2) for name, t in taken.items()}
    out["spent on"] = breakdown(clip)
    return {"clip": list(clip.shape), "ms a frame": out}


def breakdown(clip: U8) -> dict[str, float]:
    """Milliseconds a frame of each stage of trajectories without descriptors, under a profiler."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(trajectories, clip)
    stats: Any = pstats.Stats(profile)
    out = {}
    for stage, (file, function) in STAGES.items():
        times = [v[3] for (path, _, name), v in stats.stats.items() if name == function and path.endswith(f"/{file}")]
        out[stage] = round(sum(times) / len(clip) * 1e3, 2)
    return out


def measure() -> Iterator[tuple[str, Any]]:
    """All figures."""
    cv2.setNumThreads(1)
    clips = {
        "Weizmann, 120×100": ("weizmann/wave2/daria_wave2.avi", 0, None, (100, 120)),
        "NTU, 320×240": ("videos/S001C001P001R001A001_rgb.avi", 30, 360, (240, 320)),
        "KTH, 120×90": (BOXING, 0, None, (90, 120)),
    }
    yield (
        "agreement with the original",
        {
            "default": agreement(IDTParams()),
            "the original's vote alone": agreement(IDTParams(camera="original")),
            "SIFT in place of SURF": agreement(IDTParams(features="sift")),
        },
    )
    yield "speed, KTH boxing", speed(read(BOXING, 150))
    yield "speed, UCF101-like clip", speed(read("videos/v_GGSY1Qvo990.mp4", 60))
    yield "speed, surveillance", speed(read("fight/fight/fi001.mp4", 53, 0, 240))
    for clip, where in clips.items():
        for kind in ("shift", "zoom", "rotate", "all"):
            yield f"camera motion, {clip}, {kind}", moving_camera(*where, kind)


if __name__ == "__main__":
    main("idt", measure, __doc__ or "")
