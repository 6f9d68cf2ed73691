"""What an answer costs with and without flow: ``python benchmarks/relation.py [--source VIDEO] [--write]``.

A network on RGB alone (A), the motion student (S), both fused, and two streams (A and F) with TV-L1 flow, each by
3-D ResNeXt-101 (16 frames of 112 px) and by I3D (32 frames of 224 px), with the rest of the backbone as head, and light
heads on I3D. Parameters and multiply-adds are counted; latency is from the opened video to probabilities through
``kdcache.predict``, networks in turn, median of nine. Clips are rendered, weights random: time does not depend on them.
The video is a rendered one (160 × 120, 48 frames), or ``--source``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import kdcache
from kdcache.demo.scene import make_dataset
from kdcache.runs.cost import Cost, costs
from kdcache.runs.requirements import extraction_calls

REPEATS = 9
NETWORKS: dict[str, dict[str, Any]] = {
    "A: RGB alone": {"network": "rgb"},
    "S: motion student": {"network": "student"},
    "A and S fused": {},
    "A and F: two streams": {"network": "two-stream"},
}
KINDS: dict[str, dict[str, Any]] = {
    "ResNeXt-101": {"head": "tail"},
    "I3D": {"backbone": "i3d", "head": "tail"},
    "I3D, light heads": {"backbone": "i3d", "head": "light"},
}
LINE = "epochs=1 milestones= batch_size=2 plateau=0"
ONCE: dict[str, Any] = dict.fromkeys(("teacher", "appearance", "student", "fused"), LINE)


def clips(folder: Path) -> Path:
    """A manifest of four rendered clips of two classes."""
    rows = make_dataset(folder, clips_per_class=2)
    rows = rows[rows["role"] == "action"].drop(columns=["pair", "role"])
    rows = rows.groupby("label").head(2).head(4).assign(split=["train", "train", "train", "validation"])
    path = folder / "four.csv"
    kdcache.write_manifest(rows, path)
    return path


def measure(source: Path | None) -> Iterator[tuple[str, Any]]:
    """Every kind of backbone."""
    yield "video", "rendered, 160 x 120, 48 frames" if source is None else source.name
    yield "repeats", REPEATS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = clips(folder)
        video = source or sorted((folder / "videos").glob("*.mp4"))[0]
        for kind, options in KINDS.items():
            yield kind, of_kind(folder, manifest, options, video)


def of_kind(folder: Path, manifest: Path, options: dict[str, Any], video: Path) -> dict[str, Any]:
    """Train each network for an epoch, for its files, and measure them side by side."""
    (call,) = extraction_calls("relation", **options)
    weights = {name.partition("/")[0]: "random:0" for name in call.streams}
    out = folder / f"cache-{options.get('backbone', 'resnext101')}"
    kdcache.extract(manifest, folder, out, call.streams, weights=weights, **call.settings)
    runs = {
        name: kdcache.train(
            "relation", out, out=folder / "runs" / f"{len(list(folder.glob('runs/*')))}", **options, **given, **ONCE
        )
        for name, given in NETWORKS.items()
    }
    measured = dict(zip(runs, costs([run.path for run in runs.values()], video, repeats=REPEATS), strict=True))
    alone, two = measured["A: RGB alone"], measured["A and F: two streams"]
    return {name: described(of, alone, two) for name, of in measured.items()}


def described(of: Cost, alone: Cost, two: Cost) -> dict[str, Any]:
    """What is stored of one network."""
    assert of.seconds is not None
    assert two.seconds is not None
    return {
        "parameters, M": round(of.parameters / 1e6, 2),
        "over RGB alone, M": round((of.parameters - alone.parameters) / 1e6, 2),
        "multiply-adds, G": round(of.multiply_adds / 1e9, 2),
        "multiply-adds over RGB alone, G": round((of.multiply_adds - alone.multiply_adds) / 1e9, 2),
        "flow fields": of.flow_fields,
        "latency, ms": round(1000 * of.seconds),
        "of it flow, ms": round(1000 * (of.flow_seconds or 0)),
        "two streams take, times as long": round(two.seconds / of.seconds, 2),
    }


if __name__ == "__main__":
    parser = common.options("relation", __doc__ or "")
    parser.add_argument("--source", type=Path, help="a video to answer for")
    given = parser.parse_args()
    common.run("relation", measure(given.source), given)
