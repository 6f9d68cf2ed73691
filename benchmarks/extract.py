"""Extraction as a whole against its slowest stage alone, and its memory: ``python benchmarks/extract.py [--write]``.

Targets: wall time ≤ 1.15 × the slowest stage alone; peak memory does not grow with the number of clips. The clips are
those of the demo, which anyone can render.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

import common
from kdcache.demo.scene import make_dataset

if TYPE_CHECKING:
    from kdcache.extraction.features import Backbones
    from kdcache.extraction.plan import WorkUnit
    from kdcache.extraction.worker import ClipInputs, WorkerConfig
    from kdcache.streams.backbone import BackboneStream

STREAM, WEIGHTS = "i3d-rgb/mixed4a", {"i3d-rgb": "random:0"}


class Worker(NamedTuple):
    """All of an extraction as one unit of one worker of this process."""

    stream: BackboneStream
    unit: WorkUnit
    config: WorkerConfig
    nets: Backbones

    @classmethod
    def of(cls, rows: pd.DataFrame, root: Path, settings: dict[str, Any], out: Path) -> Worker:
        """Its plan and network, for an empty folder ``out``."""
        import torch

        from kdcache.extraction.features import Backbones
        from kdcache.extraction.plan import WorkUnit, make_plan
        from kdcache.extraction.source_memory import fingerprint_sources
        from kdcache.extraction.worker import WorkerConfig
        from kdcache.roots import Roots
        from kdcache.store.scan import Origins
        from kdcache.streams.backbone import BackboneStream
        from kdcache.streams.registry import resolve
        from kdcache.streams.settings import StreamSettings

        streams = resolve([STREAM], StreamSettings.of(settings), WEIGHTS)
        (stream,) = streams
        assert isinstance(stream, BackboneStream)
        prints, paths = fingerprint_sources(rows["source"].unique().tolist(), Roots.of(root), out / "sources.csv")
        plan = make_plan(rows, rows["source"], streams, prints, paths, {}, {}, Origins(out).at)
        unit = WorkUnit((STREAM,), tuple(t for u in plan.units for t in u.tasks))
        config = WorkerConfig(out, tuple(streams), "cpu", None, torch.get_num_threads(), None)
        return cls(stream, unit, config, Backbones(streams, "cpu", None))

    def inputs(self) -> Iterator[ClipInputs]:
        """Every clip, decoded."""
        from kdcache.extraction.worker import ClipInputs, decoded, prepared
        from kdcache.workers import StopFlag

        for item in prepared(decoded(self.unit, [self.stream], self.config, StopFlag()), [self.stream]):
            if isinstance(item, ClipInputs):
                yield item

    def backbone(self, ready: list[ClipInputs]) -> None:
        """Features of decoded clips."""
        for clip in ready:
            self.nets.features([clip.inputs[STREAM]], self.stream)

    def all(self) -> None:
        """Everything, shards included."""
        from kdcache.extraction.worker import run_unit
        from kdcache.workers import StopFlag

        run_unit(self.unit, self.config, self.nets, lambda event: None, StopFlag())


def _stages(rows: pd.DataFrame, root: Path, settings: dict[str, Any], repeat: int) -> dict[str, float]:
    """Median seconds of decoding alone, backbone alone, and all together with shards written."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker.of(rows, root, settings, Path(folder))
        ready = list(worker.inputs())
        assert len(ready) == len(rows)
        return common.compare(
            {
                "decode": lambda: sum(1 for _ in worker.inputs()),
                "backbone": lambda: worker.backbone(ready),
                "all": worker.all,
            },
            repeat=repeat,
        )


def _peak_mb(folder: Path, clips_per_class: int) -> float:
    """Peak resident memory of a whole extraction in a process of its own, in MB."""
    code = (
        "import sys, json, resource, kdcache\n"
        f"kdcache.extract({str(folder / 'clips.csv')!r}, {str(folder)!r}, {str(folder / f'out{clips_per_class}')!r},"
        f" [{STREAM!r}], {WEIGHTS!r}, size=112, bar=False)\n"
        "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure() -> Iterator[tuple[str, Any]]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = make_dataset(root, clips_per_class=8)
        cases: dict[str, dict[str, Any]] = {"112 px, fp32": {"size": 112}}
        cases |= {f"224 px, {precision}": {"precision": precision} for precision in common.precisions()[1:]}
        for name, settings in cases.items():
            seconds = _stages(rows, root, settings, repeat=3)
            slowest = max(seconds["decode"], seconds["backbone"])
            yield name, {"seconds": seconds, "all / slowest stage": seconds["all"] / slowest, "target": 1.15}
        few = _peak_mb(root, 8)
        make_dataset(root, clips_per_class=32)
        many = _peak_mb(root, 32)
        yield "peak memory", {"96 clips, MB": few, "384 clips, MB": many}


if __name__ == "__main__":
    common.main("extract", measure, __doc__ or "")
