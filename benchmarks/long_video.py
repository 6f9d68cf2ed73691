"""Many short clips of one long video: what extraction costs beyond decoding, colour and the backbone.

    python benchmarks/long_video.py [--write]

A video of 320×240 is encoded here (90 s at 25 frames a second); each of its clips of 2.25 s gives eight frames
of 32 px. All figures are processor seconds of all threads, the least of three runs in turn in one process, the backbone
in one thread (several spin while they wait for each other or for a clip, which would be counted):

- ``decode``: PyAV's plain loop over the whole file;
- ``colour``: turning the frames that are wanted into RGB;
- ``backbone``: the features of clips that lie ready;
- ``auto``, ``decord``: extraction with that decoder, from opening the video to committed shards.

``beyond`` is what ``auto`` takes over the sum of the first three; target: below 0.2.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import torch
from av.video.reformatter import VideoReformatter
from extract import STREAM, Worker

from common import main
from kdcache.manifest import validate

SECONDS, FPS, CLIP_S = 90, 25, 2.25
HEIGHT, WIDTH = 240, 320
NAME = "long.mp4"


def encode(path: Path) -> None:
    """A camera that wanders over a texture."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (600, 800, 3), np.uint8), (0, 0), 3)
    scene = cv2.normalize(scene, scene, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for t in range(SECONDS * FPS):
            y, x = int(180 + 170 * np.sin(t / 60)), int(240 + 230 * np.sin(t / 83))
            picture = np.ascontiguousarray(scene[y : y + HEIGHT, x : x + WIDTH], np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def plain(path: Path, wanted: frozenset[int] = frozenset()) -> None:
    """PyAV's usual loop; frames ``wanted`` are turned into RGB."""
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "FRAME", 2
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def least(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Least processor seconds of each."""
    taken = dict.fromkeys(runs, float("inf"))
    for _ in range(3):
        for name, run in runs.items():
            start = time.process_time()
            run()
            taken[name] = min(taken[name], time.process_time() - start)
    return taken


def measure() -> Iterator[tuple[str, Any]]:
    """All figures at once."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encode(root / NAME)
        starts = np.arange(int(SECONDS / CLIP_S)) * CLIP_S
        clips = [{"clip_id": f"c{i}", "source": NAME, "start_s": s, "stop_s": s + CLIP_S} for i, s in enumerate(starts)]
        rows = validate(pd.DataFrame(clips))
        workers = {}
        for decoder in ("auto", "decord"):
            (root / decoder).mkdir()
            settings = {"size": 32, "frames": 8, "decoder": decoder}
            workers[decoder] = Worker.of(rows, root, settings, root / decoder)
        ready = list(workers["auto"].inputs())
        wanted = frozenset(np.concatenate([clip.frames[STREAM] for clip in ready]).tolist())
        seconds = least(
            {
                "decode": lambda: plain(root / NAME),
                "decode and colour": lambda: plain(root / NAME, wanted),
                "backbone": lambda: workers["auto"].backbone(ready),
                **{name: worker.all for name, worker in workers.items()},
            }
        )
        seconds["colour"] = seconds.pop("decode and colour") - seconds["decode"]
        needed = sum(seconds[name] for name in ("decode", "colour", "backbone"))
        found = {name: round(value, 2) for name, value in seconds.items()}
        yield f"{len(rows)} clips, {len(wanted)} frames", {**found, "beyond": round(seconds["auto"] / needed - 1, 3)}


if __name__ == "__main__":
    main("long_video", measure, __doc__ or "")
