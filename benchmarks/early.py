"""Early recognition: what the loop costs a step, what a session saves a grid, and an epoch on a UCF101-sized cache.

    python benchmarks/early.py [--write]

1. A student's step with both distillation terms through the training loop against the same model written directly on
   ``torch.nn.GRU`` with tensors in memory. The acceptance is ≤ 1.1.
2. A grid of eight runs through ``kdcache ablate`` against eight calls of ``kdcache train``, one after the other.
3. An epoch of the student on 13,000 × 10 × 2,048 float16 features, in a process of its own, with its peak memory: with
   the features held in memory, and read from the shards in every batch.

All features are synthetic; their values do not change the time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import compare, main
from kdcache.data.loader import feed, shuffled
from kdcache.data.training_data import TrainingData
from kdcache.engine.log import Log
from kdcache.engine.loop import fit_stage
from kdcache.manifest import validate
from kdcache.methods import early
from kdcache.methods.contract import Stage
from kdcache.runs.config import RunSettings
from kdcache.runs.prepare import prepare
from kdcache.store import Record, commit_shard, update_index
from kdcache.workers import Interrupts

STREAM = "tsm-resnet50/clip"
N, D = 10, 2048


def write_cache(folder: Path, clips: int, classes: int) -> None:
    """Random features, a tenth of them validation and a fifth test, in shards of about 256 MB."""
    rng = np.random.default_rng(0)
    backbone = {"name": "tsm-resnet50", "layer": "clip", "weights": {"spec": "random:0", "rule": 1}}
    recipe = {"stream": STREAM, "layout": "fixed", "dtype": "float16", "backbone": backbone}
    recipe |= {
        "progress": {"levels": N, "mode": "segment"},
        "sampling": {"frames": 8},
        "views": {"size": 224, "names": ["centre"]},
    }
    splits = ["train", "validation", "train", "test", "train", "test"] + ["train"] * 4
    rows = [
        {"clip_id": f"{i:05d}", "source": f"{i}.avi", "start_s": None, "stop_s": None}
        | {"label": i % classes, "split": splits[(i // classes) % 10]}
        for i in range(clips)
    ]
    table = validate(pd.DataFrame(rows))
    size = 256 * 2**20 // (2 * N * D)
    for start in range(0, clips, size):
        records = [
            Record(
                clip={k: v for k, v in row.items() if v is not None},
                origin={},
                keys={STREAM: f"{start + i:032x}"},
                frames={STREAM: np.arange(N, dtype=np.int32)},
                arrays={STREAM: rng.random((1, N, D), np.float32).astype(np.float16)},
            )
            for i, row in enumerate(rows[start : start + size])
        ]
        update_index(folder, table, commit_shard(folder, records, {STREAM: recipe}).located)


class Plain(nn.Module):
    """The student as anyone would write it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(D, 512, batch_first=True)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.gru(x)[0])
        return scores


def plain_epoch(student: Plain, optimizer: Any, x: Tensor, y: Tensor, teacher: Tensor, batches: list[Tensor]) -> None:
    """One pass of equation (4) on tensors in memory: α = β = 0.5, τ = 1, targets detached."""
    student.train()
    for index in batches:
        log_s = torch.log_softmax(student(x[index].float()), -1)
        log_t = torch.log_softmax(teacher[index], -1)
        l_cls = F.nll_loss(log_s.flatten(0, 1), y[index].repeat_interleave(N))
        l_ts = (log_t.exp() * (log_t - log_s)).sum(-1).mean()
        later = log_s[:, 1:].detach()
        l_self = (later.exp() * (later - log_s[:, :-1])).sum(-1).mean()
        loss = l_cls + 0.5 * l_ts + 0.5 * l_self
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()


def student(folder: Path, **options: Any) -> tuple[TrainingData, Stage, early.Options]:
    """The student's stage on a cache held in memory; its teacher is as it was drawn."""
    settings = RunSettings(method="early", shards=str(folder), device="cpu")
    wanted = early.Options(beta=0.5, **options)
    opened = prepare(settings, wanted, {"budget": 10**12})
    resolved = early.resolve(wanted, opened.data)
    return opened, list(early.stages(resolved, opened.data))[-1], resolved


def step_time(clips: int = 1280, classes: int = 101) -> dict[str, float]:
    """Milliseconds of a step through the loop and written by hand, on the same batches of 64."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder / "cache", clips, classes)
        opened, stage, options = student(folder / "cache")
        data = opened.data
        plan = shuffled(stage.train, options.batch_size, 1, np.random.default_rng(0))
        ready = list(feed(stage.train, plan, data.device))
        x, y = torch.cat([b["x"].half() for b in ready]), torch.cat([b["y"] for b in ready])
        batches = list(torch.split(torch.arange(len(y)), options.batch_size))
        teacher = torch.randn(len(y), N, classes)
        plain = Plain(classes)
        sgd = torch.optim.SGD(plain.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay)
        taken: list[float] = []

        def through_the_loop() -> None:
            once = replace(stage, eval_sets={}, epochs=1)
            place = folder / f"run-{len(taken)}"
            summary = fit_stage(once, data, place / "student", Log(place, bars=False), Interrupts(), 1e9, False)
            taken.append(summary["rows"][0]["seconds"])

        by_hand = compare(
            {"hand": lambda: plain_epoch(plain, sgd, x, y, teacher, batches), "loop": through_the_loop}, repeat=9
        )["hand"]
        loop = statistics.median(taken[1:])
    return {
        "ms a step, torch.nn.GRU by hand": round(1000 * by_hand / len(batches), 1),
        "ms a step through the loop": round(1000 * loop / len(plan), 1),
        "loop / hand": round(loop / by_hand, 3),
    }


def grid(clips: int = 600, classes: int = 20) -> dict[str, float]:
    """Seconds of eight runs: by one call of ablate with one and two processes, and by eight calls of train."""
    rates, weights, betas = ("0.01", "0.02"), ("0", "0.5"), ("0", "1")
    common = ["--shards", "cache", "--set", "epochs=6", "--set", "milestones=4"]
    every = [
        ["--set", f"lr={a}", "--set", f"alpha={b}", "--set", f"beta={c}"] for a, b, c in product(rates, weights, betas)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder / "cache", clips, classes)

        def call(*arguments: str) -> None:
            subprocess.run([sys.executable, "-m", "kdcache", *arguments], cwd=folder, check=True, capture_output=True)

        def seconds(calls: Sequence[Sequence[str]]) -> float:
            start = time.perf_counter()
            for arguments in calls:
                call(*arguments)
            return time.perf_counter() - start

        sets = [f"lr={','.join(rates)}", f"alpha={','.join(weights)}", f"beta={','.join(betas)}"]
        several = [text for option in sets for text in ("--set", option)]
        ablate = ["ablate", "early", *common, *several, "--seeds", "1", "--tune", "0"]
        alone = seconds([["train", "early", *common, *own] for own in every])
        one = seconds([[*ablate, "--out", "one"]])
        two = seconds([[*ablate, "--out", "two", "--workers", "2"]])
    return {
        "s, 8 calls of train": round(alone, 1),
        "s, ablate": round(one, 1),
        "s, ablate with 2 workers": round(two, 1),
        "calls / ablate": round(alone / one, 2),
        "calls / ablate with 2 workers": round(alone / two, 2),
    }


EPOCH = """
import json, resource, sys
import kdcache
shards, out, fraction = sys.argv[1:]
run = kdcache.train("early", shards=shards, out=out, memory_fraction=float(fraction), alpha=0.0, beta=0.5, epochs=2)
rows = run.history
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"s an epoch, tests included": rows["seconds"].iloc[-1], "peak MB of the process": round(peak)}))
"""


def epochs(clips: int = 13_000, classes: int = 101) -> Iterator[tuple[str, Any]]:
    """The second epoch of L_cls + β L_self on a UCF101-sized cache, features held in memory and read from shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cache(folder / "cache", clips, classes)
        for how, hold in (("held in memory", "0.6"), ("read from the shards", "0")):
            command = [sys.executable, "-c", EPOCH, str(folder / "cache"), str(folder / how), hold]
            done = subprocess.run(command, check=True, capture_output=True)
            yield f"13,000 clips of 10 x 2,048, {how}", json.loads(done.stdout)


def measure() -> Iterator[tuple[str, Any]]:
    """All three."""
    yield "a step", step_time()
    yield from epochs()
    yield "a grid of 8 runs", grid()


if __name__ == "__main__":
    main("early", measure, __doc__ or "")
