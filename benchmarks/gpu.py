"""What a GPU does: networks, extraction, training steps: ``python benchmarks/gpu.py [--write] [--only PART]``.

Needs a CUDA device, else it says so and measures nothing (``--device cpu`` tries the script on small inputs). Weights
are random, videos are rendered here. Flow and light heads side by side have scripts of their own (tvl1_torch.py,
vectorised.py).

- Networks: clips a second from bytes on the device to features there, in batches of the size that extraction takes, as
  extraction runs them and with ``--compile``; operations a second (two a multiply-add) and their share of what a large
  product of matrices reaches on the same device in the same precision; distance from the CPU's fp32. Targets: I3D's
  ``mixed4a`` at 0.5 of the product's rate in bf16; distance 1e-2 in bf16, 1e-4 in fp32.
- Extraction: clips a second from videos of two sizes, a decoder a core, and the share of the time, from the first
  kernel to the end of the last, in which the device computes.
- Training: the step of ``anticipation``'s student with loading over the step without, target 1.03.
"""

from __future__ import annotations

import argparse
import functools
import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pandas as pd
import torch
import train
from torch.utils.flop_counter import FlopCounterMode

import common
import kdcache
from kdcache import backbones
from kdcache.extraction.features import batch_size
from kdcache.numerics import full_precision

NETWORKS = {  # backbone: layer, images or frames of a segment
    "i3d-rgb": ("mixed4a", 32),
    "i3d-flow": ("mixed4a", 32),
    "tsm-resnet50": ("clip", 8),
    "resnet34": ("layer4", 4),
    "resnext101": ("layer4", 16),
    "vacnn": ("pool", 4),
}
SIZES = {"1280 × 720": (1280, 720), "320 × 240": (320, 240)}
FRAMES, CLIPS = 96, 256  # of a video, and videos
CASES = {
    "light head, 224 px": ("light", 384, (480, 8, 14, 14), 32),
    "I3D head, 224 px": ("i3d", 64, (480, 8, 14, 14), 6),
}


class Bench:
    """A device, and how much is measured on it: all, or just enough to try the script."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.small = device == "cpu"

    def wait(self) -> None:
        """Until the device has done what was launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Of one call of each, in turn; some first, in which networks are compiled and captured."""
        times = 2 if self.small else 20

        def several(run: Callable[[], Any]) -> None:
            for _ in range(times):
                run()
            self.wait()

        each: dict[str, Callable[[], Any]] = {name: partial(several, run) for name, run in runs.items()}
        return {name: s / times for name, s in common.compare(each, repeat=3 if self.small else 7).items()}

    def product(self, precision: str) -> float:
        """Operations a second of a large product of matrices."""
        side = 512 if self.small else 8192
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        a, b = torch.randn(2, side, side, device=self.device, dtype=dtype)
        with full_precision():
            return 2 * side**3 / self.seconds({"product": lambda: a @ b})["product"]

    def network(self, name: str, rates: dict[str, float]) -> dict[str, Any]:
        """Figures of one network in each precision."""
        layer, frames = NETWORKS[name]
        net = backbones.build(name, "random:0")
        side = 32 if self.small and net.input.modality != "skeleton" else net.input.size
        shape = (frames, side, side, net.input.channels)
        size = 1 if self.small else batch_size(int(np.prod(shape)))
        clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8))
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            net.features(net.prepare(clips[:1]), layer)
        operations = float(counted.get_total_flops())
        exact = backbones.frozen(net, layer)(clips[:1])
        found: dict[str, Any] = {"segments of a batch": size, "GFLOP a segment": round(operations / 1e9, 1)}
        x = clips.to(self.device)
        for precision, rate in rates.items():
            compiled = [False] if self.small else [False, True]  # a CPU compiles none
            frozen = {
                ("compiled" if one else "as it is"): backbones.frozen_layers(
                    net, [layer], precision, str(self.device), one
                )
                for one in compiled
            }
            seconds = self.seconds({how: partial(each.at, [layer], x) for how, each in frozen.items()})
            for how, s in seconds.items():
                off = frozen[how].at([layer], x)[0][:1].cpu() - exact
                found[f"{precision}, {how}"] = {
                    "segments/s": round(size / s, 1),
                    "TFLOP/s": round(operations * size / s / 1e12, 2),
                    "share of a product's": round(operations * size / s / rate, 3),
                    "distance from the CPU's fp32": float(off.norm() / exact.norm()),
                }
        return found

    def extraction(self, width: int, height: int) -> dict[str, Any]:
        """I3D's ``mixed4a`` in bf16 of many videos."""
        count = 4 if self.small else CLIPS
        settings = {"size": 32, "frames": 8, "precision": "fp32"} if self.small else {"precision": "bf16"}
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            rows = pd.DataFrame([{"clip_id": f"v{n}", "source": f"v{n}.mp4"} for n in range(count)])
            write_videos(root, count, width, height)
            call = partial(
                kdcache.extract, rows, root, streams=["i3d-rgb/mixed4a"], weights={"i3d-rgb": "random:0"},
                workers="auto", device=str(self.device), bar=False, **settings,
            )  # fmt: skip
            kinds = [getattr(torch.profiler.ProfilerActivity, self.device.type.upper())]
            with torch.profiler.profile(activities=kinds) as profile:
                seconds = common.compare({"extract": lambda: call(out=root / "out")}, repeat=1, warmup=0)["extract"]
                self.wait()
            report = call(out=root / "out")
            assert report.cached == count, report
        found = {"videos": count, "clips/s, start included": round(count / seconds, 1)}
        return found | ({} if self.small else busy(profile))


def busy(profile: torch.profiler.profile) -> dict[str, float | str]:
    """The share of the time in which a kernel ran, from the first to the last; copies are not counted."""
    events: list[Any] = cast("Any", profile).events()
    kernels = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA" and not event.name.startswith(("Memcpy", "Memset"))
    )
    if not kernels:
        return {"busy": "not known: the profiler may see no kernel here"}
    until, computing = kernels[0][0], 0.0
    for start, end in kernels:
        computing += max(0.0, end - max(start, until))
        until = max(until, end)
    whole = until - kernels[0][0]
    return {"s from the first kernel to the last": round(whole / 1e6, 2), "busy": round(computing / whole, 3)}


def write_videos(folder: Path, count: int, width: int, height: int) -> None:
    """Videos ``v0.mp4``, ``v1.mp4`` …: eight, and copies with other bytes: clips of equal bytes are computed once."""
    for n in range(count):
        path = folder / f"v{n}.mp4"
        if n < 8:
            write_video(path, width, height, n)
        else:  # an empty box at the end, which players skip
            path.write_bytes((folder / f"v{n % 8}.mp4").read_bytes() + struct.pack(">I4sQ", 16, b"free", n))


def write_video(path: Path, width: int, height: int, seed: int) -> None:
    """A texture that moves, H.264 at 30 frames a second."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 8 + 8, width // 8 + 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(FRAMES):
            frame = np.ascontiguousarray(texture[t % 32 : t % 32 + height, t : t + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def parts(device: str) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    bench = Bench(device)
    rates = functools.cache(
        lambda: {precision: bench.product(precision) for precision in (["fp32"] if bench.small else ["bf16", "fp32"])}
    )
    found: dict[str, Callable[[], Any]] = {
        "TFLOP/s of a product of matrices": lambda: {name: round(r / 1e12, 2) for name, r in rates().items()}
    }
    found |= {name: partial(lambda net: bench.network(net, rates()), name) for name in NETWORKS}
    found |= {f"extraction of {name}": partial(bench.extraction, *size) for name, size in SIZES.items()}
    for name, (head, pairs, shape, batch) in CASES.items():
        few = (head, 16, (480, 8, 7, 7), batch) if bench.small else (head, pairs, shape, batch)
        found[f"training, {name}"] = partial(train.measure_case, *few, device)
    return found


def measure(device: str, only: Sequence[str], write: bool) -> Iterator[tuple[str, Any]]:
    """Figures as they come; each is stored at once beside those of other calls on the same device."""
    named = torch.cuda.get_device_name() if device != "cpu" else "this CPU, to try the script: no figure counts"
    path = common.RESULTS / "gpu.json"
    stored = json.loads(path.read_text())["results"] if write and path.exists() else {}
    found = {"device": named} | (stored if stored.get("device") == named else {})
    yield "device", named
    for name, part in parts(device).items():
        if not only or name in only:
            found[name] = part()
            if write:
                common.write_results("gpu", found)
            yield name, found[name]


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store each figure in results/gpu.json as it comes")
    parser.add_argument("--only", action="append", choices=list(parts("cpu")), default=[], help="repeatable")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the script on small inputs")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("not run: no CUDA device here")
        return
    if given.device == "cpu" and given.write:
        parser.error("--write stores what a GPU does: leave --device cpu out")
    for name, figures in measure(given.device, given.only, given.write):
        print(json.dumps({name: figures}, indent=2, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
