"""Fifty runs of ``early`` that differ in seed and numbers alone: in one pass (``ablate --together``), and one by one.

On features of the usual shape (10 levels × 256, 60 training clips, batches of 16; a cache of random numbers in a
temporary folder) the same runs, each with its teacher, are trained both ways in one process. Weights must be equal to
1e-5 (on a GPU, whose kernels add in other orders, to 1e-3), else nothing is printed. Given are seconds a head and the
ratio, once of the trainings alone (column ``seconds`` of their logs) and once of everything that ``train`` does:
opening, scoring in the end, writing. The acceptance is ≤ 0.2 on a GPU at the default width, 512. On a CPU a wide head
fills a core by itself; there fewer heads are timed, and fewer epochs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
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

STREAM, LEVELS, WIDTH, CLASSES = "tsm-resnet50/clip", 10, 256, 10
EPOCHS = {"cuda": 20, "cpu": 3}


def write_cache(folder: Path) -> None:
    """60 training, 20 validation and 20 test clips of random features that depend on the class."""
    rng = np.random.default_rng(0)
    backbone = {"name": "tsm-resnet50", "layer": "clip", "weights": {"spec": "random:0", "rule": 1}}
    recipe = {"stream": STREAM, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    recipe |= {
        "progress": {"levels": LEVELS, "mode": "segment"},
        "sampling": {"frames": 8},
        "views": {"size": 224, "names": ["centre"]},
    }
    rows = [
        {"clip_id": f"{i:05d}", "source": f"{i}.avi", "start_s": None, "stop_s": None}
        | {"label": i % CLASSES, "split": ["train", "train", "train", "validation", "test"][i // CLASSES % 5]}
        for i in range(100)
    ]
    means = rng.normal(size=(CLASSES, WIDTH))
    records = [
        Record(
            clip={k: v for k, v in row.items() if v is not None},
            origin={},
            keys={STREAM: f"{i:032x}"},
            frames={STREAM: np.arange(LEVELS, dtype=np.int32)},
            arrays={STREAM: (means[i % CLASSES] + rng.normal(size=(1, LEVELS, WIDTH))).astype(np.float16)},
        )
        for i, row in enumerate(rows)
    ]
    update_index(folder, validate(pd.DataFrame(rows)), commit_shard(folder, records, {STREAM: recipe}).located)


def jobs(folder: Path, cache: Path, heads: int, device: str, **options: Any) -> list[Job]:
    """Runs with a seed each and one of five rates."""
    common = {"method": "early", "shards": str(cache), "device": device, "precision": "fp32", "batch_size": 16}
    common |= {"epochs": EPOCHS[device], "milestones": (2,), **options}
    return [
        Job(str(seed), folder / str(seed), {**common, "seed": seed, "lr": 0.01 * (1 + seed % 5), "alpha": 0.5})
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


def measure_case(heads: int, device: str, **options: Any) -> dict[str, Any]:
    """One by one, then together, on one cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder / "cache")
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
    yield "16 wide", measure_case(50, device, hidden=16, teacher_hidden=8)
    yield "64 wide", measure_case(50, device, hidden=64, teacher_hidden=32)
    yield "512 wide (default)", measure_case(wide, device)
    yield "64 wide, dropout", measure_case(50, device, hidden=64, teacher_hidden=32, dropout=0.3)


if __name__ == "__main__":
    main("vectorised", measure, __doc__ or "")
