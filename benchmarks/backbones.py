"""TSM, VA-CNN, ResNet-34 and 3-D ResNeXt-101 on this CPU, and the step from skeletons to images.

    python benchmarks/backbones.py [--write]

"eager fp32" is the published network as a plain module under ``no_grad`` on a contiguous float tensor made beforehand;
the frozen runs start from the decoder's bytes. All take turns in one process on one thread, a worker's share of a busy
machine. Random weights. Memory is the peak of the process above what it held before (Linux only), weights not counted.
Agreement is that of extracted features, batch by batch and worker by worker.
The skeleton step is held against the published preprocessing written as its authors did, one Python loop a frame.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import kdcache
from common import compare, main, precisions
from kdcache import backbones
from kdcache.backbones.base import Backbone
from kdcache.demo.scene import make_dataset
from kdcache.skeletons import Skeleton
from kdcache.skeletons.image import NTU_LIMITS, bytescale, image_of, level_images

# backbone: layer, images or frames of a clip (fewer than usual where one is much like the next)
CASES = {
    "tsm-resnet50": ("clip", 8),
    "vacnn": ("pool", 4),
    "resnet34": ("layer4", 4),
    "resnet34-flow": ("layer4", 4),
    "resnext101": ("layer4", 16),
    "resnext101-flow": ("layer4", 16),
}
BATCHES = (1, 16)
VIDEO_STREAMS = ["tsm/clip", "resnet34/layer4"]
RANDOM = dict.fromkeys(("tsm", "resnet34", "vacnn"), "random:0")


def clips(net: Backbone, batch: int, frames: int) -> torch.Tensor:
    """Random bytes as extraction yields them, uint8 [batch, frames, size, size, C]."""
    shape = (batch, frames, net.input.size, net.input.size, net.input.channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def throughput(net: Backbone, layer: str, frames: int) -> dict[str, Any]:
    """Milliseconds a clip, speed-ups over eager fp32 and relative errors of the frozen network."""
    pixels = clips(net, 1, frames)
    x = net.prepare(pixels).contiguous()
    frozen = {precision: backbones.frozen(net, layer, precision) for precision in precisions()}
    with torch.no_grad():
        runs: dict[str, Callable[[], Any]] = {"eager fp32": partial(net.features, x, layer)}
        runs |= {f"frozen {name}": partial(run, pixels) for name, run in frozen.items()}
        seconds = compare(runs, repeat=3)
        exact = net.features(x, layer)
    plain = seconds["eager fp32"]
    return {
        "clip": f"{frames}x{net.input.size}x{net.input.size}",
        "layer": layer,
        "ms a clip": {name: round(1e3 * s, 1) for name, s in seconds.items()},
        "times faster than eager fp32": {name: round(plain / s, 2) for name, s in seconds.items()},
        "relative error": {
            name: float(f"{((run(pixels) - exact).norm() / exact.norm()).item():.1e}") for name, run in frozen.items()
        },
    }


def memory(net: Backbone, layer: str, frames: int) -> dict[str, Any]:
    """Peak MiB above the start of one call for each batch size, plain and frozen."""
    frozen = backbones.frozen(net, layer, "fp32")
    result: dict[str, Any] = {"eager fp32": {}, "frozen fp32": {}}
    with torch.no_grad():
        for batch in BATCHES:
            pixels = clips(net, batch, frames)
            result["eager fp32"][f"batch {batch}"] = peak(partial(eager, net, pixels, layer))
            result["frozen fp32"][f"batch {batch}"] = peak(partial(frozen, pixels))
    return result


def eager(net: Backbone, pixels: torch.Tensor, layer: str) -> torch.Tensor:
    """A plain forward from bytes."""
    return net.features(net.prepare(pixels), layer)


def peak(run: Callable[[], Any]) -> float | None:
    """Largest resident memory during ``run`` above that before it, in MiB; None where /proc cannot tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not sys.platform.startswith("linux"):
        return None

    def field(name: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that stays in the heap would hide the peak
    reset.write_text("5")
    before = field("VmRSS")
    run()
    return round((field("VmHWM") - before) / 1024, 1)


def published_image(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One image of [T, 150] by the published steps as they are written there: a loop over frames, then deletions."""
    empty = [i for i in range(len(rows)) if (rows[i, :] == np.zeros((1, 150))).all()]
    rows = np.delete(rows, empty, axis=0)
    if (rows[:, :75] == np.zeros((len(rows), 75))).all():
        rows = np.delete(rows, range(75), axis=1)
    elif (rows[:, 75:] == np.zeros((len(rows), 75))).all():
        rows = np.delete(rows, range(75, 150), axis=1)
    low, high = NTU_LIMITS
    values = (255 * (rows - low) / (high - low)).reshape(len(rows), -1, 3)
    return np.asarray(Image.fromarray(bytescale(values)).resize((224, 224), Image.Resampling.BILINEAR))


def published_steps(joints: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Centring, padding to 300 frames and two bodies, then the image, loop by loop."""
    rows = joints.reshape(len(joints), -1).copy()
    bodies = rows.shape[1] // 75
    origin = np.copy(rows[0, 3:6])
    for f in range(len(rows)):
        rows[f] -= np.tile(origin, 25 * bodies)
    padded = np.zeros((300, 150), np.float32)
    padded[: len(rows), : 75 * bodies] = rows
    return published_image(padded)


def skeletons() -> dict[str, Any]:
    """Milliseconds a clip of the skeleton step: one image, and ten levels of progress."""
    rng = np.random.default_rng(0)
    results = {}
    for name, frames, bodies in (("1 person, 100 frames", 100, 1), ("2 people, 300 frames", 300, 2)):
        joints = (rng.normal(0, 0.02, (frames, 25 * bodies, 3)).cumsum(axis=0) + 3).astype(np.float32)
        clip = Skeleton(joints, 25, 1, np.arange(frames, dtype=np.int32), frames, 30.0, "ntu")
        same = np.abs(published_steps(joints).astype(int) - image_of(clip)).max()
        seconds = compare(
            {
                "published steps": partial(published_steps, joints),
                "image": partial(image_of, clip),
                "image, float_bilinear": partial(image_of, clip, resize="float_bilinear"),
                "10 levels of progress": partial(level_images, clip, 10),
            },
            repeat=15,
            warmup=2,
        )
        results[name] = {
            "ms a clip": {run: round(1e3 * s, 2) for run, s in seconds.items()},
            "times faster than the published steps": round(seconds["published steps"] / seconds["image"], 2),
            "largest difference in grey levels": int(same),
        }
    return results


def agreement() -> dict[str, float]:
    """Largest difference over largest value of features extracted with batches of 1 and 16, by one and two workers."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder, clips_per_class=1)
        write_skeletons(folder, 8)
        for manifest, streams in (("clips.csv", VIDEO_STREAMS), ("skeletons.csv", ["vacnn/pool"])):
            found: dict[str, list[NDArray[Any]]] = {}
            for how, batch, workers in (("1", 1, 1), ("batch 16", 16, 1), ("two workers", 1, 2)):
                out = folder / f"{manifest}-{how}"
                kdcache.extract(
                    folder / manifest, folder, out, streams, weights=RANDOM, workers=workers, batch=batch, bar=False
                )
                cache = kdcache.Cache(out)
                found[how] = [cache.read(stream, list(cache.clips["clip_id"])) for stream in streams]
            for how in ("batch 16", "two workers"):
                for stream, a, b in zip(streams, found["1"], found[how], strict=True):
                    a, b = a.astype(np.float64), b.astype(np.float64)
                    results[f"{stream}, {how}"] = float(f"{np.abs(a - b).max() / np.abs(a).max():.1e}")
    return results


def write_skeletons(folder: Path, count: int) -> None:
    """Random walks of 20 joints in MSR Action3D's format, and their manifest."""
    rng = np.random.default_rng(0)
    rows = ["clip_id,source,start_s,stop_s,label"]
    for i in range(count):
        walk = rng.normal(0, 0.02, (20, 20, 3)).cumsum(axis=0) + rng.normal(0, 0.5, (1, 20, 3)) + 3
        lines = np.concatenate([walk.reshape(-1, 3), np.ones((400, 1))], axis=1)
        np.savetxt(folder / f"{i}.txt", lines, fmt="%.6f")
        rows.append(f"{i},{i}.txt,,,0")
    (folder / "skeletons.csv").write_text("\n".join(rows) + "\n")


def measure() -> Iterator[tuple[str, Any]]:
    """The skeleton step, then every backbone on one thread."""
    yield "agreement", agreement()
    torch.set_num_threads(1)
    yield "threads", 1
    yield "skeleton to image", skeletons()
    for name, (layer, frames) in CASES.items():
        net = backbones.build(name, weights="random:0")
        found = throughput(net, layer, frames)
        if not name.endswith("-flow"):
            found["peak MiB of a batch"] = memory(net, layer, frames)
        yield name, found


if __name__ == "__main__":
    main("backbones", measure, __doc__ or "")
