"""Every row of PMRD's and the imprint paper's tables, trained on Weizmann: does it all run, and what comes out?

    python benchmarks/egocentric_real.py DATA --work FOLDER [--folds lena,ido] [--seeds 2] [--write]

DATA holds ``weizmann/`` (60 clips of 10 actions by 6 people, a fixed camera). One person is held out at a time. For
each, a ResNet-34 is fitted from random weights on the other people's clips, and the networks start from it, where the
papers start from ImageNet. There are no validation clips: nothing is selected, every row is trained with one setting
and its last epoch is shown. Schedules are a small part of the papers', 80 px and 4 frames a clip. Every step is a
command that is printed; what is in FOLDER already is not computed again.

What this cannot show: 10 test clips a person, two people and few hundred optimiser steps tell no method from another; a
fixed camera and whole bodies are not what the methods are for; the fitted backbone has seen the clips that the heads
train on. Rows of one table below take the same steps where the table compares methods (``steps`` says how many); PMRD's
Table I shows one network after each of its steps. Nothing is concluded from it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import write_results
from kdcache.runs import presets
from kdcache.runs.run import Run

SIZE, RESIZE, FRAMES = 80, 92, 4
COMMON = {"frames": FRAMES, "size": SIZE}
SHORT: dict[str, dict[str, Any]] = {  # batches of 10 of 50 clips: 5 steps an epoch
    "pmrd": {
        "rgb_1": "epochs=6 batch_size=10 milestones=5",
        "rgb_2": "epochs=4 batch_size=10 milestones=3",
        "flow_branch": "epochs=10 batch_size=10 milestones=8",
        "joint": "epochs=4 batch_size=10",
        "hallucination": "epochs=5 batch_size=10 milestones=4",
        "student": "epochs=4 batch_size=10",
    },
    # as many epochs as PMRD's RGB branch (18) and motion branch (23) take in all their steps
    "egornn": {
        "rgb_1": "epochs=6 batch_size=10 milestones=5",
        "rgb_2": "epochs=4 batch_size=10 milestones=3",
        "flow_net": "epochs=15 batch_size=10 milestones=12",
        "spatial": "epochs=18 batch_size=10 milestones=14 lr=0.01",
        "joint": "epochs=8 batch_size=10",
        "snippets": 3,
    },
    # stage 3 takes 13 steps an epoch (batches of 4), so the rows without it take 10 epochs more of stage 2
    "imprint": {
        "stage1": "epochs=6 batch_size=10 milestones=5",
        "stage2": "epochs=4 batch_size=10 milestones=3",
        "stage3": "epochs=4 batch_size=4 milestones=3",
    },
}
LONGER: dict[str, dict[str, Any]] = {
    "egornn": {
        "rgb": {"rgb_2": "epochs=14 batch_size=10 milestones=10"},
        "flow": {"flow_net": "epochs=20 batch_size=10 milestones=15"},
        "two-stream": {"flow_net": "epochs=23 batch_size=10 milestones=18"},
        "tsn": {"flow_net": "epochs=23 batch_size=10 milestones=18"},
    },
    "imprint": {"stage2": "epochs=14 batch_size=10 milestones=10"},
}
"""Schedules with which rows of fewer stages take as many steps."""


def kdcache(work: Path, text: str, *more: str) -> None:
    """Run one command in the work folder, and say it."""
    words = [*shlex.split(text), *more]
    print("kdcache", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "kdcache", *words], cwd=work, check=True, stdout=subprocess.DEVNULL)


def rows() -> Iterator[tuple[str, str, str, dict[str, Any], dict[str, float]]]:
    """Table, row, method, options and the paper's numbers of everything that is trained."""
    for paper, name in (
        ("pmrd", "table1"), ("imprint", "table3"), ("pmrd", "table2"), ("imprint", "tau"), ("imprint", "alpha"),
    ):  # fmt: skip
        for row in presets.tables(paper)[name].rows:
            if row.quoted:
                continue
            method = row.method or paper
            options = {**COMMON, **SHORT[method], **{k: v for k, v in row.options.items() if k != "frames"}}
            if method == "egornn":
                options |= {"flow": "flow", "flow_net": SHORT[method]["flow_net"], "joint": SHORT[method]["joint"]}
                options |= LONGER[method].get(str(options["network"]), {})
            elif name == "table3" and options.get("feedback") == "off":
                options |= LONGER["imprint"]
            yield f"{paper} {name}", row.name, method, options, row.paper


def run(person: str, seed: int, data: Path, work: Path) -> None:
    """Fit, extract and train everything for one held-out person and seed."""
    root = str(data / "weizmann")
    if not (work / "clips.csv").exists():
        kdcache(work, "manifest folder --set 'subject=(?P<subject>[a-z]+)_' -o clips.csv", "--root", root)
    from_clips = f"--manifest clips.csv --root {shlex.quote(root)}"
    kdcache(work, f"extract {from_clips} --stream rgb --stream flow --stream idt --short-side {RESIZE} --out dense")
    fit, cache = f"fit-{person}", f"cache-{person}"
    shown = f"--set frames={FRAMES} --set size={SIZE} --set resize={RESIZE} --set batch_size=10 --set optimizer=adam"
    kdcache(
        work,
        f"fit resnet34 {from_clips} --split-column subject={person} {shown} --set lr=0.0005 "
        "--set weight_decay=0 --set epochs=40 --set milestones=32 "
        f"--set init=random:0 --set validation=0 --out {fit}",
    )
    if not (work / cache).exists():
        shutil.copytree(work / "dense", work / cache)
    weights = f"--weights {fit}/resnet34.safetensors"
    seen = f"--frames {FRAMES} --size {SIZE} --resize {RESIZE} --views centre,centre-flip,tl@0.875,tr@0.875-flip"
    kdcache(work, f"extract {from_clips} --stream resnet34/layer3 {weights} {seen} --out {cache}")

    import kdcache as toolkit
    from kdcache.runs.session import Session

    session = Session(stages=work / f"stages-{person}", bars=False)
    for table, name, method, options, _ in rows():
        init = {"init": str(work / fit / "resnet34.safetensors")} if not _reads_maps(method, options) else {}
        out = work / "runs" / f"{table} {name}".replace("/", "-") / person / f"seed-{seed}"
        print(table, name, person, seed, flush=True)
        toolkit.train(
            method, work / cache, seed=seed, out=out, session=session, split_column=f"subject={person}",
            validation=0.0, weights=str(work / fit / "resnet34.safetensors"), **init, **options,
        )  # fmt: skip


def _reads_maps(method: str, options: dict[str, Any]) -> bool:
    return method != "egornn" or options["network"] in ("rgb", "average", "joint")


def summary(work: Path, folds: list[str], seeds: int) -> dict[str, Any]:
    """Accuracy of each row over people and seeds, with a bootstrap interval over test clips, and its steps."""
    found: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for table, name, _, _, paper in rows():
        correct: dict[str, list[Any]] = {}
        steps, scores = set(), []
        for person in folds:
            for seed in range(seeds):
                folder = work / "runs" / f"{table} {name}".replace("/", "-") / person / f"seed-{seed}"
                if not (folder / "metrics.json").exists():
                    continue
                made = Run(folder)
                steps.add(made.metrics["steps"])
                scores.append(made.metrics["last"]["test"]["label"]["top1"])
                answers = pd.read_csv(folder / "predictions.csv").sort_values("clip_id")
                classes = [str(c) for c in answers if str(c).isdecimal()]
                best = np.array(classes)[answers[classes].to_numpy().argmax(1)]
                correct.setdefault(person, []).append(best == answers["label"].astype(str).to_numpy())
        if not scores:
            continue
        clips = [
            np.asarray(np.mean(of, 0)) for of in correct.values()
        ]  # of each clip the share of seeds that get it right
        drawn = [np.mean([rng.choice(c, len(c)).mean() for c in clips]) for _ in range(10000)]
        low, high = (100 * np.quantile(drawn, q) for q in (0.025, 0.975))
        found.setdefault(table, {})[name] = {
            "top1": round(float(np.mean(scores)), 1),
            "interval": [round(float(low), 1), round(float(high), 1)],
            "of": [round(float(s), 1) for s in scores],
            "steps": sorted(steps),
            "paper": paper,
        }
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--folds", default="lena,ido", help="people that are held out, in turn")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="store the figures in results/egocentric_real.json")
    parser.add_argument("--only-summary", action="store_true", help="of what has been trained so far")
    given = parser.parse_args()
    people, work = given.folds.split(","), given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for seed in range(0 if given.only_summary else given.seeds):
        for person in people:
            run(person, seed, given.data.resolve(), work)
    results = {"folds": people, "seeds": given.seeds, "tables": summary(work, people, given.seeds)}
    print(json.dumps(results, indent=1, ensure_ascii=False))
    if given.write:
        write_results("egocentric_real", results)
