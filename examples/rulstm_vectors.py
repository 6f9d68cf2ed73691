"""RULSTM-format vectors → anticipation at eight times → the challenge's numbers. How to run it: README.md.

RULSTM's own vectors are downloads of many gigabytes; here they are drawn from a seed in the same format, for seven
videos of its EPIC-KITCHENS-55 lists, so that verb and noun of an action show more and more in the 3.5 s before it.
Numbers of such a run say that the steps work and nothing else.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pandas as pd

import kdcache
from kdcache.datasets import manifest_for
from kdcache.manifest import write_manifest

TRAIN = ("P01_16", "P29_02", "P08_04", "P02_02", "P03_05")
HELD_OUT = ("P26_02", "P28_05")
FPS, STEPS, STEP_S = 30, 14, 0.25
WIDTH = 32  # of a vector; RULSTM's RGB and flow have 1024 numbers
QUICK: dict[str, Any] = {"hidden": 48, "dropout": 0.2, "epochs": 6, "lr": 0.1, "batch_size": 32, "device": "cpu"}


def draw(path: Path, clips: pd.DataFrame, seed: int = 0) -> None:
    """An LMDB of one float32 vector a frame, under RULSTM's keys."""
    rng = np.random.default_rng(seed)
    verbs, nouns = rng.normal(size=(125, WIDTH)), rng.normal(size=(352, WIDTH))
    with lmdb.open(str(path), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        for video, rows in clips.groupby("group"):
            vectors = rng.normal(size=(int(rows["stop_s"].max() * FPS) + 2, WIDTH))
            for start, stop, verb, noun in rows[["start_s", "stop_s", "verb", "noun"]].itertuples(index=False):
                frames = np.arange(int(start * FPS), int(stop * FPS))
                vectors[frames] += np.linspace(0, 1.5, len(frames))[:, None] * (verbs[verb] + nouns[noun])
            for number, vector in enumerate(vectors.astype("<f4"), 1):
                transaction.put(f"{video}_frame_{number:010d}.jpg".encode(), vector.tobytes())


def main() -> None:
    """Every step, into the folder ``--work``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("lists", type=Path, help="RULSTM/data/ek55 of RULSTM's repository")
    parser.add_argument("annotations", type=Path, help="official CSV files of EPIC-KITCHENS-55")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True)

    clips = manifest_for("rulstm", arguments.lists, history=STEPS * STEP_S)  # clips end where their actions start
    clips = clips[clips["group"].isin((*TRAIN, *HELD_OUT))]
    write_manifest(clips, work / "clips.csv")
    draw(work / "rgb", clips)
    command = ["import", "lmdb", work / "rgb", "--manifest", work / "clips.csv", "--out", work / "cache"]
    command += ["--stream", "rulstm/rgb", "--origin", "drawn", "--frames", STEPS, "--step", STEP_S, "--lag", STEP_S]
    done = subprocess.run([sys.executable, "-m", "kdcache", *map(str, command)])
    assert done.returncode in (0, 3)  # 3: actions in a video's first quarter of a second have nothing before them

    run = kdcache.train("rulstm", work / "cache", out=work / "run", **QUICK)
    measured = run.metrics["best@validation"]["validation"]
    for tau_s in run.answer_axis(8).values:
        shown = "  ".join(f"{what} {measured[what][f'top5@{tau_s:g}']:5.1f}" for what in ("verb", "noun", "label"))
        print(f"{tau_s:4.2f} s before the action, top-5 %: {shown}")
    for name, value in kdcache.submit(run, annotations=arguments.annotations, which="best").numbers.items():
        print(f"{name}: {value:.1f}")


if __name__ == "__main__":
    main()
