"""How large a cache gets and how long it takes to fill: data set × layer, written into ``docs/sizes.md``.

    python benchmarks/sizes.py [--write]

Bytes follow from the shapes of one view. What zstd gains is the ratio of ``results/dtype-sizes.json``, where that layer
was measured. Hours are extrapolated from ``results/i3d.json`` and ``results/backbones.json`` (the network alone, one
thread) times what a whole extraction took over its slowest part (``results/extract.json``): they hold where decoding is
faster than the network, on a machine as that named in these files.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from common import RESULTS
from kdcache import backbones
from kdcache.streams.base import level_shape
from kdcache.streams.sharing import shared_axes

PAGE = Path(__file__).parents[1] / "docs" / "sizes.md"
MARK = "<!-- written by python benchmarks/sizes.py --write -->"
DATASETS = {  # name → clips, and what they are; counts as on the pages of manifests/
    "EPIC-KITCHENS-55": (2 * (28_472 + 26_391), "28,472 labelled pairs, 26,391 unlabelled"),
    "EPIC-KITCHENS-100": (2 * (67_217 + 9_668), "76,885 labelled pairs"),
    "EGTEA Gaze+": (10_325, "clips"),
    "UCF101": (13_320, "clips"),
    "HMDB51": (6_766, "clips"),
    "Something-Something V1": (108_499, "clips"),
    "Kinetics-400": (260_000, "training and validation clips"),
    "NTU RGB+D 60": (56_578, "skeleton files"),
}


class Layer(NamedTuple):
    """A stream whose backbone has been timed."""

    stream: str
    axes: str
    levels: int | None
    """Levels of progress that are cached."""
    result: tuple[str, ...]
    """Where in which file of results its milliseconds lie."""
    timed_frames: int


LAYERS = [
    Layer("i3d-rgb/mixed4a", "VCTHW", None, ("i3d", "32x224x224, batch 1, 1 thread"), 32),
    Layer("resnet34/layer4", "VTCHW", None, ("backbones", "resnet34"), 4),
    Layer("resnext101/layer4", "VCTHW", None, ("backbones", "resnext101"), 16),
    Layer("tsm/clip", "VND", 10, ("backbones", "tsm-resnet50"), 8),
]
SKELETON = Layer("vacnn/pool", "VND", 10, ("backbones", "vacnn"), 4)


def load(name: str) -> dict[str, Any]:
    """The figures of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def shape_of(layer: Layer) -> tuple[tuple[int, ...], int]:
    """Shape of a clip in one view, and frames that the network sees of it."""
    name = layer.stream.split("/")[0]
    spec = backbones.input_spec(name)
    assert spec.frames is not None
    if spec.modality == "skeleton":
        assert layer.levels is not None
        return (1, *backbones.layer_shape(name, layer.stream.split("/")[1], layer.levels)[1]), layer.levels
    shape = backbones.layer_shape(name, layer.stream.split("/")[1], spec.frames, spec.size)[1]
    if layer.levels is None:
        return (1, *shape), spec.frames
    return (1, layer.levels, *level_shape(shape)), layer.levels * spec.frames


def rows(layer: Layer, datasets: dict[str, tuple[int, str]]) -> list[str]:
    """Lines of the table."""
    shape, frames = shape_of(layer)
    numbers = math.prod(shape)
    shared = shared_axes(layer.axes, shape)
    scales = math.prod(n for n, axis in zip(shape, layer.axes, strict=True) if axis not in shared)
    half, packed = 2 * numbers, numbers + 8 * scales
    gained = load("dtype-sizes")["results"].get(layer.stream, {}).get("kB a clip")
    zstd = packed * gained["uint8, zstd"] / gained["uint8"] if gained else None
    timed = load(layer.result[0])["results"][layer.result[1]]["ms a clip"]
    whole = load("extract")["results"]["112 px, fp32"]["all / slowest stage"]
    made = []
    for name, (clips, _) in datasets.items():
        size = [f"{clips * nbytes / 1e9:,.1f}" if nbytes else "not measured" for nbytes in (half, packed, zstd)]
        seconds = clips * frames / layer.timed_frames * whole / 1000
        hours = [f"{seconds * timed[f'frozen {precision}'] / 3600:,.0f}" for precision in ("fp32", "bf16")]
        cells = [name, f"`{layer.stream}`", " × ".join(map(str, shape)), f"{half / 1e3:,.0f} kB", *size, *hours]
        made.append(f"| {' | '.join(cells)} |")
    return made


def table() -> str:
    """Everything below the mark of the page."""
    videos = {name: found for name, found in DATASETS.items() if found[1] != "skeleton files"}
    skeletons = {name: found for name, found in DATASETS.items() if found[1] == "skeleton files"}
    head = ["data set", "stream", "clip, one view", "float16", "float16, GB", "uint8, GB", "uint8 zstd, GB",
            "hours, fp32", "hours, bf16"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for layer in LAYERS:
        lines += rows(layer, videos)
    lines += rows(SKELETON, skeletons)
    counts = "; ".join(f"{name} {clips:,} ({what})" for name, (clips, what) in DATASETS.items())
    machine = load("backbones")["machine"]
    return "\n".join([
        f"Clips: {counts}. An anticipation pair is two clips.",
        "",
        f"Hours are of one core of a machine with {machine['cores']} ({machine['cpu']}, no GPU): divide by the cores "
        "that extract. Several views multiply both.",
        "",
        *lines,
        "",
    ])  # fmt: skip


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/sizes.md")
    text = table()
    if not parser.parse_args().write:
        print(text)
        return
    before = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{before}{MARK}\n\n{text}")


if __name__ == "__main__":
    main()
