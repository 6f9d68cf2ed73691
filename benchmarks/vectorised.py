"""Fifty runs that differ in seed and numbers alone: in one pass (``ablate --together``), and one by one.

On features of the usual shape (``early``: 10 levels × 256, 60 training clips; ``anticipation``: maps of
480 × 4 × 7 × 7, 60 training pairs; batches of 16; caches of random numbers in a temporary folder) the same runs, each
with its teacher, are trained both ways in one process. Weights must be equal to 1e-5 (on a GPU, whose kernels add in
other orders, to 1e-3), else nothing is printed. Given are seconds a head and the ratio, once of the trainings alone
(column ``seconds`` of their logs) and once of everything that ``train`` does: opening, scoring in the end, writing.
The acceptance is ≤ 0.2 on a GPU at the default width, 512. On a CPU a wide head fills a core by itself; there fewer
heads are timed, and fewer epochs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from common import main
from kdcache.manifest import validate
from kdcache.runs.ablation.pool import Job, Pool, in_passes, run_jobs
from kdcache.runs.run import Run
from kdcache.store import Record, commit_shard, update_index

LEVELS, WIDTH, CLASSES = 10, 256, 10
MAP = (480, 4, 7, 7)
EPOCHS = {"cuda": 20, "cpu": 3}


def write_levels(folder: Path) -> None:
    """60 training, 20 validation and 20 test clips of random features that depend on the class."""
    write(folder, "tsm-resnet50/clip", (LEVELS, WIDTH), ["clip"], progress={"levels": LEVELS, "mode": "segment"})


def write_pairs(folder: Path) -> None:
    """As many pairs of random maps."""
    write(folder, "i3d-rgb/mixed4a", MAP, ["observed", "action"])


def write(folder: Path, stream: str, shape: tuple[int, ...], roles: list[str], **more: Any) -> None:
    """A cache of examples of one clip, or of a clip for each role."""
    rng = np.random.default_rng(0)
    name, _, layer = stream.partition("/")
    backbone = {"name": name, "layer": layer, "weights": {"spec": "random:0", "rule": 1}}
    recipe = {"stream": stream, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    recipe |= {"sampling": {"frames": 8}, "views": {"size": 224, "names": ["centre"]}, **more}
    rows: list[dict[str, Any]] = [
        {"clip_id": f"{i:05d}-{role}", "source": f"{i}.avi", "start_s": float(n), "stop_s": n + 1.0}
        | {"label": i % CLASSES, "split": ["train", "train", "train", "validation", "test"][i // CLASSES % 5]}
        | ({"pair": f"{i:05d}", "role": role} if len(roles) > 1 else {})
        for i in range(100)
        for n, role in enumerate(roles)
    ]
    means = rng.normal(size=(CLASSES, *shape[:1], *(1,) * (len(shape) - 1)))
    records = [
        Record(
            clip=row,
            origin={},
            keys={stream: f"{i:032x}"},
            frames={stream: np.arange(LEVELS, dtype=np.int32)},
            arrays={stream: (means[row["label"]] + rng.normal(size=(1, *shape))).astype(np.float16)},
        )
        for i, row in enumerate(rows)
    ]
    update_index(folder, validate(pd.DataFrame(rows)), commit_shard(folder, records, {stream: recipe}).located)


def jobs(folder: Path, cache: Path, heads: int, device: str, **options: Any) -> list[Job]:
    """Runs with a seed each and one of five rates."""
    common = {"shards": str(cache), "device": device, "precision": "fp32", "batch_size": 16}
    common |= {"epochs": EPOCHS[device], "milestones": (2,), **options}
    return [
        Job(str(seed), folder / str(seed), {**common, "seed": seed, "lr": 0.01 * (1 + seed % 5)})
        for seed in range(heads)
    ]


def trained(made: list[Job], stages: Path, together: int) -> tuple[float, float]:
    """Seconds of all of it, and of the epochs alone."""
    problems: list[str] = []
    started = time.perf_counter()
    run_jobs(made, Pool(together=together), stages, lambda job, problem: problems.extend([problem] if problem else []))
    seconds = time.perf_counter() - started
    assert not problems, problems
    return seconds, sum(float(Run(job.folder).history["seconds"].sum()) for job in made)


def largest_difference(alone: list[Job], together: list[Job]) -> float:
    """Between any two weights of a run."""
    found = 0.0
    for one, other in zip(alone, together, strict=True):
        for path in one.folder.rglob("*.safetensors"):
            first, second = load_file(path), load_file(other.folder / path.relative_to(one.folder))
            found = max(found, *(float((first[name] - second[name]).abs().max()) for name in first))
    return found


def measure_case(heads: int, device: str, make: Callable[[Path], None], **options: Any) -> dict[str, Any]:
    """One by one, then together, on one cache that ``make`` has written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "cache")
        trained(jobs(folder / "warm", folder / "cache", 2, device, **options), folder / "stages-0", 1)
        trained(jobs(folder / "warm2", folder / "cache", 2, device, **options), folder / "stages-1", 2)
        alone, together = (jobs(folder / way, folder / "cache", heads, device, **options) for way in ("alone", "pass"))
        assert len(in_passes(together, heads)) == 1
        one_by_one = trained(alone, folder / "stages-2", 1)
        in_one = trained(together, folder / "stages-3", heads)
        difference = largest_difference(alone, together)
        assert difference <= (1e-5 if device == "cpu" else 1e-3), difference
        return {
            "heads": heads,
            "device": device,
            "epochs of teacher and student": EPOCHS[device],
            "seconds a head, one by one": round(one_by_one[0] / heads, 3),
            "seconds a head, in one pass": round(in_one[0] / heads, 3),
            "ratio": round(in_one[0] / one_by_one[0], 3),
            "ratio of the trainings alone": round(in_one[1] / one_by_one[1], 3),
            "largest difference of a weight": difference,
        }


def measure() -> Iterator[tuple[str, Any]]:
    """Heads of three widths, and with dropout."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wide = 50 if device == "cuda" else 8
    early: dict[str, Any] = {"make": write_levels, "method": "early", "alpha": 0.5}
    yield "early, 16 wide", measure_case(50, device, **early, hidden=16, teacher_hidden=8)
    yield "early, 64 wide", measure_case(50, device, **early, hidden=64, teacher_hidden=32)
    yield "early, 512 wide (default)", measure_case(wide, device, **early)
    yield "early, 64 wide, dropout", measure_case(50, device, **early, hidden=64, teacher_hidden=32, dropout=0.3)
    anticipation: dict[str, Any] = {"make": write_pairs, "method": "anticipation", "head": "light"}
    yield "anticipation, 32 wide", measure_case(wide, device, **anticipation, width=32)
    yield "anticipation, 256 wide (default)", measure_case(wide, device, **anticipation)


if __name__ == "__main__":
    main("vectorised", measure, __doc__ or "")
