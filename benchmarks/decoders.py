"""Which decoder is faster on the files that both read to the same pixels, by how much of a file is wanted.

    python benchmarks/decoders.py [--write]

Needs the real videos (``KDCACHE_SHARED``, default ``../shared``), one of which is encoded as HEVC here. Each figure is
the processor time of all threads of PyAV over that of decord, opening included, in turns in one process; below 1 PyAV
is faster. ``all``: every frame; ``each 8th``: what eight frames of a clip of two seconds come to; ``last 8th``: every
frame of the end of the file; ``wall``: every frame, by the clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from common import SHARED, main
from kdcache.sources import open_source

VIDEOS = (
    "videos/v_GGSY1Qvo990.mp4",
    "videos/v_ZNVhz7ctTq0.mp4",
    "videos/SOX5yA1l24A.mp4",
    "videos/flipping_a_pancake.mkv",
    "videos/S001C001P001R001A001_rgb.avi",
)
HEVC = ("videos/v_GGSY1Qvo990.mp4", 250)  # these frames of it
REPEAT = 3


def seconds(path: Path, decoder: str, wanted: range) -> tuple[float, float]:
    """Processor and wall seconds of reading frames."""
    cpu, wall = time.process_time(), time.perf_counter()
    with open_source(path, decoder) as source:
        for _ in source.read(wanted):
            pass
    return time.process_time() - cpu, time.perf_counter() - wall


def as_hevc(path: Path, count: int, out: Path) -> None:
    """Encode the first frames of a video again."""
    with open_source(path) as source, av.open(str(out), "w") as container:
        stream = container.add_stream(
            "libx265", rate=25, options={"preset": "ultrafast", "x265-params": "log-level=none"}
        )
        stream.width, stream.height, stream.pix_fmt = source.info.width, source.info.height, "yuv420p"
        for picture in source.read(range(count)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def measure_video(path: Path) -> dict[str, Any]:
    """All figures of one video."""
    with open_source(path) as source:
        count, info = len(source.times), source.info
    wanted = {"all": range(count), "each 8th": range(0, count, 8), "last 8th": range(count - count // 8, count)}
    row: dict[str, Any] = {"video": f"{info.codec} {info.width}×{info.height}, {count} frames"}
    for request, indices in wanted.items():
        taken: dict[str, list[tuple[float, float]]] = {"decord": [], "pyav": []}
        for _ in range(REPEAT):
            for decoder, found in taken.items():
                found.append(seconds(path, decoder, indices))
        cpu, wall = ({d: min(t[i] for t in found) for d, found in taken.items()} for i in (0, 1))
        row[request] = round(cpu["pyav"] / cpu["decord"], 2)
        if request == "all":
            row["wall"] = round(wall["pyav"] / wall["decord"], 2)
    return row


def measure() -> Iterator[tuple[str, Any]]:
    """One row a video."""
    for name in VIDEOS:
        yield name, measure_video(SHARED / name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hevc.mp4"
        as_hevc(SHARED / HEVC[0], HEVC[1], path)
        yield f"{HEVC[0]} as HEVC", measure_video(path)


if __name__ == "__main__":
    main("decoders", measure, __doc__ or "")
