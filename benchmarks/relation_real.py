"""Every row of the relation table on real clips: Weizmann with one person held out at a time, and the fight clips.

    python benchmarks/relation_real.py DATA --work FOLDER [--only weizmann] [--workers 2] [--write]

DATA holds ``weizmann/`` (60 clips of 10 actions by 6 people) and ``fight/`` (64 clips, fight or not, from 8 source
videos). Light heads on I3D ``mixed4a`` maps of RGB and of TV-L1 flow (16 frames of 112 px, two views), whose I3D has
**random** weights: nothing has been learned before, by either modality. Weizmann leaves each person out in turn, the
fight clips each of five groups of source videos. In each fold one more person (a fifth of the clips, in whole groups)
chooses the trial and the epoch; the clips that are reported choose nothing. Every row gets the same trials of learning
rate and length, its networks 0.5 to 2 times 500 optimiser steps each, and teachers, appearance networks and students
that are equal are trained once.

Figures are means over folds. Intervals resample folds, and within them clips (nested bootstrap, 95 %), of each row and
of its difference to RGB alone. ``smallest gain`` is what a difference to RGB had to be for its
interval to exclude 0 with 80 % power, from the spread of the differences over folds. What varies is the fold; the
seed of the heads and the backbone's random weights are one draw.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import write_results
from kdcache.runs.presets import tables
from kdcache.runs.run import Run

SEEN = {"frames": 16, "size": 112}
LINE = "batch_size=10 epochs=125 milestones=90/115"  # 40 training clips: 4 steps an epoch
SETTINGS = {"teacher": LINE, "appearance": LINE, "student": LINE, "fused": "batch_size=10 epochs=60"}
TRIALS, SEEDS = 3, 1
REFERENCE = "RGB (A)"
DRAWS = 10_000
Z = 1.96 + 0.84  # of a two-sided interval of 95 %, and of 80 % power


@dataclass(frozen=True)
class Clips:
    """One set: its folder below DATA, how its manifest is made, and the folds."""

    root: str
    manifest: str
    columns: str
    """Of ``ablate``, what is held out in turn."""


SETS = {
    "weizmann": Clips("weizmann", "folder --set 'subject=(?P<subject>[a-z]+)_'", "subject=*"),
    "fight": Clips("fight", "", "fold=*"),
}
FOLDS = {0: 0, 2: 0, 4: 0, 1: 1, 3: 1, 5: 2, 6: 3, 7: 4}
"""Of the fight clips' eight source videos, so that each fold has 9 to 17 clips of both classes."""


def kdcache(work: Path, text: str, *more: str) -> None:
    """Run one command in the work folder, and say it."""
    words = [*shlex.split(text), *more]
    print("kdcache", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "kdcache", *words], cwd=work, check=True, stdout=subprocess.DEVNULL)


def clips(name: str, root: Path, work: Path) -> None:
    """Write the manifest of a set."""
    if name == "weizmann":
        kdcache(work, f"manifest {SETS[name].manifest} -o {name}.csv", "--root", str(root))
        return
    given = pd.read_csv(root / "groups.csv")
    table = pd.DataFrame({"clip_id": given["source"].str.removesuffix(".mp4"), "source": given["source"]})
    table["start_s"] = table["stop_s"] = np.nan
    table["label"] = (given["label"] == "fight").astype(int)
    table["class"], table["group"] = given["label"], given["group"]
    table["fold"] = given["group"].map(FOLDS)
    table.to_csv(work / f"{name}.csv", index=False)


def run(name: str, data: Path, work: Path, workers: int) -> None:
    """Manifest, maps and the comparison of one set."""
    root = data / SETS[name].root
    if not (work / f"{name}.csv").exists():
        clips(name, root, work)
    seen = " ".join(f"--{option} {value}" for option, value in SEEN.items())
    weights = "--weights i3d-rgb=random:0 --weights i3d-flow=random:0"
    extract = f"extract --manifest {name}.csv --for relation --preset light {seen} {weights} --workers {workers}"
    kdcache(work, f"{extract} --out cache-{name}", "--root", str(root))
    given = [word for option, value in {**SEEN, **SETTINGS}.items() for word in ("--set", f"{option}={value}")]
    compare = f"ablate relation light --shards cache-{name} --out compare-{name} --seeds {SEEDS} --tune {TRIALS}"
    kdcache(work, f"{compare} --workers {workers} --split-columns", SETS[name].columns, *given)


def correct(folder: Path, which: str) -> NDArray[np.bool_]:
    """Which test clips a run names right, in the order of their ids."""
    answers = Run(folder).predictions(which)
    answers = answers[answers["split"] == "test"].sort_values("clip_id")
    classes = [c for c in list[Any](answers.columns) if isinstance(c, int)]
    best = np.array(classes)[answers[classes].to_numpy().argmax(1)]
    return np.asarray(best == answers["label"].to_numpy(np.int64))


def summary(name: str, work: Path) -> dict[str, Any]:
    """Of each row accuracy and difference to RGB, with intervals; what tuning chose at the edge of its space."""
    described = json.loads((work / f"compare-{name}" / "ablation.json").read_text())
    per_row: dict[str, dict[str, list[NDArray[np.bool_]]]] = {}
    steps: dict[str, set[int]] = {}
    for job in described["rows"]:
        row, folder = job["label"].partition(", subject=")[0].partition(", fold=")[0], Path(job["folder"])
        fold = job["arguments"]["split_column"]
        folder = folder if folder.is_absolute() else work / folder
        per_row.setdefault(row, {}).setdefault(fold, []).append(correct(folder, "best"))
        steps.setdefault(row, set()).add(Run(folder).metrics["steps"])
    shares = {
        row: {fold: np.mean(runs, 0) for fold, runs in folds.items()} for row, folds in per_row.items()
    }  # of each clip the share of seeds that get it right
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"folds": len(shares[REFERENCE]), "seeds": SEEDS, "trials": TRIALS, "rows": {}}
    for row, folds in shares.items():
        gaps = {fold: share - shares[REFERENCE][fold] for fold, share in folds.items()}
        spread = float(np.std([gap.mean() for gap in gaps.values()], ddof=1))
        found["rows"][row] = {
            "top1": interval(folds, rng),
            "against RGB": interval(gaps, rng) if row != REFERENCE else None,
            "smallest gain": round(100 * Z * spread / math.sqrt(len(gaps)), 1) if row != REFERENCE else None,
            "of folds": [round(100 * float(share.mean()), 1) for share in folds.values()],
            "steps": [min(steps[row]), max(steps[row])],
        }
    tuned = pd.read_csv(work / f"compare-{name}" / "tuning.csv")
    chosen = tuned[tuned["chosen"]]
    edges = {option: (tuned[option].min(), tuned[option].max()) for option in ("lr_factor", "length")}
    at_edge = {o: int(chosen[o].isin(e).sum()) for o, e in edges.items()}
    found["chosen at the edge of the trials"] = {**at_edge, "of": len(chosen)}
    return found


def interval(folds: dict[str, NDArray[np.floating]], rng: np.random.Generator) -> list[float]:
    """Mean over folds and its nested bootstrap interval, in per cent."""
    values = list(folds.values())
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        chosen = rng.integers(len(values), size=len(values))
        drawn[i] = np.mean([values[k][rng.integers(len(values[k]), size=len(values[k]))].mean() for k in chosen])
    mean = float(np.mean([v.mean() for v in values]))
    return [round(100 * float(v), 1) for v in (mean, *np.quantile(drawn, (0.025, 0.975)))]


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is computed")
    parser.add_argument("--only", choices=list(SETS), help="one of the sets")
    parser.add_argument("--workers", type=int, default=1, help="processes of extract and ablate")
    parser.add_argument("--write", action="store_true", help="store the figures in results/relation_real.json")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names = [name for name in SETS if given.only in (None, name)]
    for name in names:
        run(name, given.data.resolve(), work, given.workers)
    results = {
        "rows are those of": "ablate relation light",
        "table": tables("relation")["light"].caption,
        **{name: summary(name, work) for name in names},
    }
    print(json.dumps(results, indent=1, ensure_ascii=False))
    if given.write:
        write_results("relation_real", results)


if __name__ == "__main__":
    main()
