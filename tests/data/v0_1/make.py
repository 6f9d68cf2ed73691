"""Caches, runs and figures as kdcache 0.1.0 of commit 50a958d made them, for ``tests/test_v0_1.py``.

They were written on one thread of an x86-64 CPU with AVX-512 (torch 2.15), all from synthetic clips, by

    PYTHONPATH=BASE python tests/data/v0_1/make.py --record FOLDER

where BASE is a checkout of that commit. Never record them with a later version: they are what later versions are
compared with. Two versions are compared to the bit on one machine by recording with the old one and then

    PYTHONPATH=NEW python tests/data/v0_1/make.py --compare FOLDER [--only NAME …] [--extract]

``--compare`` without FOLDER compares with the files that lie beside this script, whose last bits are those of their
machine. Status 1 means that something differs which was not meant to.

The files:

- ``sources/``: two videos and four skeleton files; ``clips.csv`` and ``skeletons.csv`` are their manifests.
- ``caches/extracted``: what ``extract`` made of them, in four calls; ``caches/{pairs,ready,clips,joined}``: shards with
  random features that have something to learn, under the recipes that extraction would give them.
- ``arrays.json``: for each cache, stream and clip the shape, dtype and SHA-256 of what ``Cache.read`` gives.
- ``runs.json``: for each case its arguments and what came out; ``answers.npz``: its class probabilities.
- ``runs/``: one whole run of each method, with weights, and a fit without its weights (94 MB). Paths in their
  ``config.toml`` are relative to this folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import kdcache

HERE = Path(__file__).resolve().parent
TIMES = ("seconds", "clips_per_s", "samples_per_s")
RANDOM = dict.fromkeys(("i3d-rgb", "tsm-resnet50", "vacnn"), "random:0")
EXTRACT: list[dict[str, Any]] = [
    {"manifest": "clips.csv", "streams": ["rgb", "flow", "idt"], "short_side": 32, "codec": "zstd"},
    {"manifest": "clips.csv", "streams": ["i3d-rgb/mixed4a"], "size": 32, "frames": 12},
    {"manifest": "clips.csv", "streams": ["tsm/clip"], "size": 32, "levels": 3},
    {"manifest": "clips.csv", "streams": ["vacnn/pool"], "levels": 3},
]
"""The calls of ``extract`` that filled ``caches/extracted``."""

LIGHT = {"head": "light", "width": 8, "epochs": 3, "milestones": (2,), "batch_size": 8, "lr": 0.05}
SMALL = {"hidden": 8, "teacher_hidden": 4, "epochs": 3, "milestones": (2,), "batch_size": 12, "lr": 0.1}
LABELLED = {"cache": "joined", "stream": "vacnn/pool", "validation": 0.4}
STEPS = "every row of a table takes the same number of optimiser steps"
SELECTION = "without a validation split nothing is selected: there is no best@test"

CASES: dict[str, dict[str, Any]] = {
    # anticipation: 30 labelled training pairs, 10 of validation; `pairs` has 20 unlabelled ones besides
    "anticipation-S": {"cache": "pairs", "data": "S", **LIGHT},
    "anticipation-S-none": {"cache": "pairs", "data": "S", "loss_d": "none", **LIGHT},
    "anticipation-S-direct": {"cache": "pairs", "data": "S", "loss_d": "direct", "distance": "mse", **LIGHT},
    "anticipation-S-AR": {"cache": "pairs", "data": "S", "loss_d": "AR", "init": "teacher", "seed": 1, **LIGHT},
    "anticipation-S-RA-kl": {"cache": "pairs", "data": "S", "loss_d": "RA", "distance": "kl", "alpha": 2.0, **LIGHT},
    "anticipation-R": {"cache": "pairs", "network": "recognition", **LIGHT},
    "anticipation-R-early": {"cache": "pairs", "network": "recognition-early", **LIGHT},
    "anticipation-verb-streamed": {"cache": "pairs", "data": "S", "target": "verb", "validation": 0.0, **LIGHT},
    "anticipation-S-U": {"cache": "pairs", "data": "S+U", "changed": STEPS, **LIGHT},
    "anticipation-S-now": {"cache": "pairs", "data": "S+now", "loss_d": "none", "changed": STEPS, **LIGHT},
    "anticipation-labels": {"cache": "pairs", "label_fraction": 0.5, "changed": STEPS, **LIGHT},
    "anticipation-test-only": {"cache": "ready", "validation": 0.0, "selection": SELECTION, **LIGHT},
    "anticipation-i3d": {
        "cache": "extracted", "head": "i3d", "stream": "i3d-rgb/mixed4a", "data": "S", "epochs": 1, "batch_size": 3,
        "heavy": True,
    },
    # early: 36 labelled and 12 unlabelled training clips, 12 of validation, 12 of test; two views
    "early-both": {"cache": "clips", "changed": STEPS, **SMALL},
    "early-alpha": {"cache": "clips", "changed": STEPS, "beta": 0.0, **SMALL},
    "early-beta": {"cache": "clips", "alpha": 0.0, "tau": 2, "self_detach": False, **SMALL},
    "early-neither": {"cache": "clips", "changed": STEPS, "alpha": 0.0, "beta": 0.0, "seed": 3, **SMALL},
    "early-teacher": {"cache": "clips", "changed": STEPS, "model": "teacher", "dropout": 0.25, **SMALL},
    "early-ts-lstm": {"cache": "clips", "changed": STEPS, "model": "ts-lstm", **SMALL},
    "early-rank-lstm": {"cache": "clips", "changed": STEPS, "model": "rank-lstm", **SMALL},
    "early-levels": {"cache": "clips", "changed": STEPS, "model": "levels", **SMALL},
    "early-knn": {"cache": "clips", "model": "knn", **SMALL},
    "early-labels": {"cache": "clips", "changed": STEPS, "label_fraction": 0.5, **SMALL},
    "early-labels-alone": {"cache": "clips", "changed": STEPS, "label_fraction": 0.5, "label_seed": 1}
    | {"alpha": 0.0, "beta": 0.0, **SMALL},
    "early-patience": {"cache": "clips", "changed": STEPS, "patience": 1, **SMALL, "epochs": 12},
    "early-cell": {"cache": "clips", "changed": STEPS, "cell": "lstm", "grad_clip": 0.05, "w_cls": 0.3}
    | {"teacher_lr": 0.2, **SMALL},
    # 24 training clips, all labelled, some held out for validation
    "early-both-labelled": {**LABELLED, **SMALL},
    "early-alpha-labelled": {**LABELLED, "beta": 0.0, **SMALL},
    "early-neither-labelled": {**LABELLED, "alpha": 0.0, "beta": 0.0, "seed": 3, **SMALL},
    "early-teacher-labelled": {**LABELLED, "model": "teacher", "dropout": 0.25, **SMALL},
    "early-ts-lstm-labelled": {**LABELLED, "model": "ts-lstm", **SMALL},
    "early-rank-lstm-labelled": {**LABELLED, "model": "rank-lstm", **SMALL},
    "early-levels-labelled": {**LABELLED, "model": "levels", **SMALL},
    "early-patience-labelled": {**LABELLED, "patience": 1, **SMALL, "epochs": 12},
    "early-cell-labelled": {**LABELLED, "cell": "lstm", "grad_clip": 0.05, "w_cls": 0.3, "teacher_lr": 0.2, **SMALL},
    "early-joined": {"cache": "joined", "stream": "tsm/clip,vacnn/pool", **SMALL},
    "early-column": {"cache": "joined", "stream": "tsm/clip", "split": "split_2", **SMALL},
    "early-hold-out": {"cache": "joined", "stream": "vacnn/pool", "validation": 0.4, **SMALL},
    "early-test-only": {"cache": "joined", "stream": "vacnn/pool", "validation": 0.0, "selection": SELECTION, **SMALL},
    "early-extracted": {"cache": "extracted", "stream": "tsm/clip,vacnn/pool", **SMALL},
    # fit: four skeletons of 24 frames
    "fit-vacnn": {
        "cache": "", "backbone": "vacnn", "manifest": "skeletons.csv", "epochs": 2, "batch_size": 2,
        "augmentations": 5, "heavy": True,
    },
    "fit-resnet34": {
        "cache": "", "backbone": "resnet34", "manifest": "videos.csv", "epochs": 2, "batch_size": 2, "frames": 3,
        "size": 64, "init": "random:0", "augmentations": 5, "heavy": True,
    },
}  # fmt: skip
"""``changed``: its numbers are meant to differ from version 0.1's; ``selection``: what it selects is; ``heavy``: takes
more than a second. What is left are options."""
MARKS = ("cache", "changed", "selection", "heavy", "backbone", "manifest")
RENAMED = ("tau",)
"""Options of a method that have another name or place in later versions; all cases have their default."""
KEPT = {"anticipation-S": "anticipation", "early-both": "early", "fit-vacnn": "fit"}
"""Cases whose folders are kept in ``runs/``."""


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def arrays(cache: Path) -> dict[str, dict[str, list[Any]]]:
    """For each stream and cached clip [shape, dtype, SHA-256] of what ``Cache.read`` gives."""
    opened = kdcache.Cache(cache)
    found: dict[str, dict[str, list[Any]]] = {}
    for stream in opened.streams:
        ids = opened.clips["clip_id"][opened.has(stream)].tolist()
        read = opened.read(stream, ids)
        found[stream] = {c: [list(a.shape), str(a.dtype), digest(a)] for c, a in zip(ids, read, strict=True)}
    return found


def weights_digest(path: Path) -> str:
    """SHA-256 of the tensors of a safetensors file, whatever their names and order."""
    from safetensors.numpy import load_file

    return hashlib.sha256("".join(sorted(digest(a) for a in load_file(path).values())).encode()).hexdigest()


def history(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.csv`` without times; empty cells are left out, numbers are floats to the last bit."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k == "stage" else float(v) for k, v in row.items() if v and k not in TIMES} for row in rows]


def run_case(name: str, folder: Path, out: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train one case on the caches in ``folder``: what came out of it, and its class probabilities by split."""
    import torch

    torch.set_num_threads(1)  # an extraction in this process may have set another number
    case = CASES[name]
    options = {key: value for key, value in case.items() if key not in MARKS}
    if "backbone" in case:
        root = folder / "sources"
        fit = kdcache.fit(case["backbone"], root / case["manifest"], root, out, device="cpu", **options)
        result = {"metrics": fit.metrics, "history": history(out / "metrics.csv")}
        return result | {"weights": weights_digest(fit.weights)}, {}
    shards = folder / "caches" / case["cache"]
    run = kdcache.train(name.split("-")[0], shards, out=out, device="cpu", **options)
    metrics = json.loads(json.dumps(run.metrics))
    metrics["stages"] = {s: {k: v for k, v in row.items() if k not in TIMES} for s, row in metrics["stages"].items()}
    stage = "student" if name.startswith("early") else "anticipation"
    stage = next(s for s in (stage, "recognition", "teacher") if (out / s / "last.safetensors").exists())
    result = {"metrics": metrics, "history": history(out / "metrics.csv"), "options": run.resolved["options"]}
    answers = {
        f"{split}/{which}": run.predict(split, which).to_numpy(np.float32)
        for split in run.metrics["last"]
        for which in (("last",) if "selection" in case else ("last", "best"))
    }
    return result | {"weights": weights_digest(out / stage / "last.safetensors")}, answers


def extract(folder: Path, out: Path) -> list[Any]:
    """The calls of ``extract`` on ``folder/sources``; their reports."""
    reports = []
    for call in EXTRACT:
        options = {k: v for k, v in call.items() if k not in ("manifest", "streams")}
        weights = {k: v for k, v in RANDOM.items() if any(s.startswith(k[:3]) for s in call["streams"])}
        manifest = kdcache.read_manifest(folder / "sources" / call["manifest"], folder / "sources")
        reports.append(
            kdcache.extract(
                manifest, folder / "sources", out, call["streams"], weights, bar=False, device="cpu", **options
            )
        )
    return reports


# ---- recording


def make_sources(folder: Path) -> None:
    """Videos of moving texture, skeletons that walk, and their manifests: four pairs."""
    import make_videos

    folder.mkdir(parents=True)
    for number in range(2):
        frames = make_videos.pictures(50, 64, 48, seed=number)
        make_videos.write(folder / f"video{number}.mp4", frames, options={"crf": "30"})
    rng = np.random.default_rng(0)
    for number in range(4):
        steps = rng.normal(0, 0.05, (24, 20, 3)).cumsum(axis=0)
        joints = steps + rng.normal(0, 0.4, (1, 20, 3)) + [0.3, 0.2, 3]
        lines = [" ".join(f"{v:.4f}" for v in joint) + " 1" for frame in joints for joint in frame]
        (folder / f"walk{number}.txt").write_text("\n".join(lines) + "\n")
    rows = []
    for number in range(4):
        for role, start in (("observed", 0.04), ("action", 1.0)):
            row: dict[str, Any] = {"clip_id": f"p{number}-{role}", "source": f"video{number % 2}.mp4"}
            row |= {"start_s": start + 0.04 * (number // 2), "stop_s": round(start + 0.8 + 0.04 * (number // 2), 2)}
            row |= {
                "split": "validation" if number > 2 else "train",
                "label": 3 * (number % 3 % 2),
                "pair": f"p{number}",
            }
            rows.append(row | {"role": role, "skeleton": f"walk{number}.txt"})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "clips.csv", index=False)
    action = table[table["role"] == "action"]
    action.to_csv(folder / "videos.csv", index=False)
    action.assign(source=action["skeleton"], start_s="", stop_s="").drop(columns="skeleton").to_csv(
        folder / "skeletons.csv", index=False
    )


def make_caches(folder: Path) -> None:
    """Shards of random features with a signal, by the test helpers of version 0.1, under extraction's own recipes."""
    import clips_cache
    import pairs_cache

    from kdcache.streams import Settings, resolve

    def recipe(stream: str, sha256: str = "") -> dict[str, Any]:
        levels = None if stream.startswith("i3d") else clips_cache.LEVELS
        return dict(resolve([stream], Settings(levels=levels), RANDOM)[0].recipe)

    pairs_cache.recipe = clips_cache.recipe = recipe
    for name, unlabelled in (("pairs", 20), ("ready", 0)):
        table = pairs_cache.rows(40, unlabelled)
        if name == "ready":
            table["split"] = table["split"].replace("validation", "test")
        maps = pairs_cache.arrays(table, views=2, shape=(16, 2, 3, 3))
        pairs_cache.write(folder / name, table, maps, shards=2)
    counts = {"train": 36, "validation": 12, "test": 12, "unlabelled": 12}
    clips_cache.cache(folder / "clips", views=2, **counts)
    table = clips_cache.rows(train=24, test=12)
    table["split_2"] = np.where(np.arange(len(table)) % 3 == 1, "test", "train")
    streams = {s: clips_cache.arrays(table, seed=i, width=6) for i, s in enumerate(("tsm/clip", "vacnn/pool"))}
    clips_cache.write(folder / "joined", table, streams)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One line for each name."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    path.write_text(f"{{\n{lines}\n}}\n")


def keep(run: Path, kept: Path, folder: Path) -> None:
    """Copy a run without curves and without what is too large; paths become relative to ``folder``."""
    shutil.copytree(run, kept, ignore=shutil.ignore_patterns("tensorboard", "vacnn.safetensors", "runs.json"))
    config = kept / "config.toml"
    config.write_text(config.read_text().replace(f"{folder}/", ""))


def record(folder: Path) -> None:
    """Write everything into a new folder."""
    folder = folder.resolve()
    sys.path.insert(0, str(Path(kdcache.__file__).parents[1] / "tests"))
    make_sources(folder / "sources")
    make_caches(folder / "caches")
    for report in extract(folder, folder / "caches" / "extracted"):
        assert not report.failures, report
    every = {cache.name: arrays(cache) for cache in sorted((folder / "caches").iterdir())}
    write_json(folder / "arrays.json", every)
    results, answers = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in CASES:
            results[name], probabilities = run_case(name, folder, work / name)
            answers |= {f"{name}/{split}": values for split, values in probabilities.items()}
            if name in KEPT:
                keep(work / name, folder / "runs" / KEPT[name], folder)
    write_json(folder / "runs.json", results)
    for lock in folder.rglob(".lock"):
        lock.unlink()
    np.savez_compressed(folder / "answers.npz", **answers)


# ---- comparing


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Where two trees of plain values differ in the least; what only the later one has is no difference."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key, value in before.items()
            for line in (differences(value, after[key], f"{where}/{key}") if key in after else [f"{where}/{key}: gone"])
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for i, pair in enumerate(zip(before, after, strict=True))
            for line in differences(*pair, f"{where}/{i}")
        ]
    return [] if before == after else [f"{where}: {before!r} → {after!r}"]


def expected(name: str, before: dict[str, Any]) -> dict[str, Any]:
    """Of what is recorded of a case, what later versions are meant to give."""
    if "selection" in CASES[name]:
        before["metrics"] = {"last": before["metrics"]["last"]}
    if name.startswith("anticipation"):
        before["options"] = {key: value for key, value in before["options"].items() if key not in RENAMED}
    return before


def compare_case(name: str, folder: Path, out: Path) -> list[str]:
    """What a case gives otherwise than is recorded in ``folder``."""
    before = json.loads((folder / "runs.json").read_text())[name]
    with np.load(folder / "answers.npz") as file:
        recorded = {key: file[key] for key in file.files if key.startswith(f"{name}/")}
    after, answers = run_case(name, folder, out)
    before = expected(name, before)
    found = differences(before, json.loads(json.dumps(after)))
    for key, values in recorded.items():
        new = answers.get(key.removeprefix(f"{name}/"))
        if new is None or new.tobytes() != values.tobytes():
            largest = np.abs(new - values).max() if new is not None and new.shape == values.shape else "another shape"
            found.append(f"/answers/{key}: {largest}")
    return found


def compare(folder: Path, only: list[str], again: bool) -> int:
    """Print what differs; the number of differences that were not meant."""
    failed = 0
    recorded = json.loads((folder / "arrays.json").read_text())
    with tempfile.TemporaryDirectory() as work:
        if not only:
            found = [
                d for c, streams in recorded.items() for d in differences(streams, arrays(folder / "caches" / c), c)
            ]
            print("\n".join(found) or f"arrays of {len(recorded)} caches: equal to the bit", flush=True)
            failed += len(found)
        if again:
            reports = extract(folder, Path(work) / "extracted")
            found = [str(f) for r in reports for f in r.failures]
            found += differences(recorded["extracted"], arrays(Path(work) / "extracted"), "extracted anew")
            print("\n".join(found) or "extracted anew: equal to the bit", flush=True)
            failed += len(found)
        for name in only or CASES:
            try:
                found = compare_case(name, folder, Path(work) / name)
            except Exception as error:  # the other cases are compared all the same
                found = [f"{type(error).__name__}: {error}"]
            meant = CASES[name].get("changed")
            told = f"differs as meant: {meant}" if meant and found else "equal to the bit"
            print(f"{name}: {told}" if meant or not found else f"{name}: DIFFERS in {len(found)} values", flush=True)
            for line in [] if meant else found[:5]:
                print(f"    {line}", flush=True)
            failed += 0 if meant else len(found)
    return failed


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, metavar="FOLDER", help="write a new folder")
    what.add_argument("--compare", type=Path, metavar="FOLDER", nargs="?", const=HERE, help="compare with a folder")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", choices=sorted(CASES), help="these cases alone"
    )
    parser.add_argument("--extract", action="store_true", help="extract anew, too")
    given = parser.parse_args()
    print(f"kdcache from {Path(kdcache.__file__).parent}", flush=True)
    if given.record:
        record(given.record)
    else:
        sys.exit(1 if compare(given.compare.resolve(), given.only, given.extract) else 0)


if __name__ == "__main__":
    main()
