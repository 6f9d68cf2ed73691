"""What loading costs a training step: anticipation's student on shards against the same step on ready tensors.

For each head and map size a synthetic cache is written to a temporary folder. One pass of the student's steps is timed
(i) on float32 batches that already lie in memory, (ii) with the stream held in memory as stored, (iii) with every batch
read from the shards, in turn and in one process. The acceptance is ≤ 1.1 for (ii) / (i) and (iii) / (i). It is of this
CPU; ``gpu.py`` asks the same of a GPU. Loading takes processor time beside the step: where the step uses all of few
cores, the share of it that these cores have left is what streaming costs. So the light heads are timed once more with
one core less for the step ("a core free"), as machines with more cores or a GPU have it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from common import compare, main
from kdcache.data.loader import Plan, feed, shuffled
from kdcache.data.training_data import TrainingData
from kdcache.manifest import validate
from kdcache.methods import anticipation
from kdcache.methods.contract import Batch, BatchSource, Stage
from kdcache.numerics import reproducible
from kdcache.runs.config import RunSettings
from kdcache.runs.prepare import prepare
from kdcache.store import Record, commit_shard, update_index

STREAM = "i3d-rgb/mixed4a"
CASES = {  # name → head, pairs, shape of a cached map, batch
    "light head, 224 px": ("light", 384, (480, 8, 14, 14), 32),
    "light head, 112 px": ("light", 1536, (480, 8, 7, 7), 32),
    "I3D head, 112 px": ("i3d", 16, (480, 8, 7, 7), 6),
}


def write_cache(folder: Path, pairs: int, shape: tuple[int, ...]) -> None:
    """Random maps of labelled pairs, a quarter of them validation, in shards of about 256 MB."""
    rng = np.random.default_rng(0)
    backbone = {"name": "i3d-rgb", "layer": "MaxPool3d_4a_3x3", "weights": {"spec": "random:0", "rule": 1}}
    recipe = {"stream": STREAM, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    clips = [
        {"clip_id": f"{i}-{role}", "source": "a.avi", "start_s": float(i), "stop_s": i + 1.0, "pair": str(i)}
        | {"role": role, "label": i % 10, "split": "validation" if i % 4 == 3 else "train"}
        for i in range(pairs)
        for role in ("observed", "action")
    ]
    table = validate(pd.DataFrame(clips))
    size = max(1, 256 * 2**20 // (2 * int(np.prod(shape))))
    for start in range(0, len(clips), size):
        records = [
            Record(
                clip=clip,
                origin={},
                keys={STREAM: f"{start + i:032x}"},
                frames={STREAM: np.arange(32, dtype=np.int32)},
                arrays={STREAM: rng.random((1, *shape), np.float32).astype(np.float16)},
            )
            for i, clip in enumerate(clips[start : start + size])
        ]
        update_index(folder, table, commit_shard(folder, records, {STREAM: recipe}).located)


def student(folder: Path, head: str, batch: int, held: bool, device: str) -> tuple[TrainingData, Stage]:
    """The student's stage with the whole objective, the teacher's targets in memory."""
    settings = RunSettings(method="anticipation", shards=str(folder), device=device)
    opened = prepare(settings, anticipation.Options(), {"budget": 10**12 if held else 0})
    wanted = anticipation.Options(head=head, init="random", batch_size=batch)  # type: ignore[arg-type]
    options = anticipation.resolve(wanted, opened.data)
    return opened, list(anticipation.stages(options, opened.data))[-1]


def step(opened: TrainingData, stage: Stage, batch: Batch) -> None:
    """One step of the loop in the run's precision, without its bookkeeping."""
    assert stage.optimizer is not None
    with opened.data.autocast():
        terms = stage.terms(batch)
    loss = torch.stack(list(terms.values())).sum()
    stage.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    stage.optimizer.step()


def measure_case(head: str, pairs: int, shape: tuple[int, ...], batch: int, device: str = "cpu") -> dict[str, float]:
    """Seconds of one pass on ready tensors, and the two ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder, pairs, shape)
        opened, stage = student(folder, head, batch, True, device)
        streamed = student(folder, head, batch, False, device)[1].train.inputs["x"][0]
        own, items = opened.data.device, stage.train
        from_shards = BatchSource({"x": (streamed, items.inputs["x"][1])}, items.fields, items.num_unlabeled)
        plan: Plan = shuffled(items, batch, 1, np.random.default_rng(0))
        ready = list(feed(items, plan, own))

        def over(batches: Any) -> None:
            stage.module.train()
            for each in batches:
                step(opened, stage, each)
            if own.type == "cuda":
                torch.cuda.synchronize(own)

        with reproducible(own):  # cuDNN's algorithms are those of a training
            seconds = compare(
                {
                    "ready tensors": lambda: over(ready),
                    "held": lambda: over(feed(items, plan, own)),
                    "streamed": lambda: over(feed(from_shards, plan, own)),
                },
                repeat=9,
            )
    base = seconds["ready tensors"]
    return {
        "ms a step on ready tensors": round(1000 * base / len(plan), 1),
        "held / ready": round(seconds["held"] / base, 3),
        "streamed / ready": round(seconds["streamed"] / base, 3),
    }


def measure() -> Iterator[tuple[str, Any]]:
    """All cases."""
    threads = torch.get_num_threads()
    for name, case in CASES.items():
        yield name, measure_case(*case)
        if case[0] == "light" and threads > 1:
            torch.set_num_threads(threads - 1)
            yield f"{name}, a core free", measure_case(*case)
            torch.set_num_threads(threads)


if __name__ == "__main__":
    main("train", measure, __doc__ or "")
