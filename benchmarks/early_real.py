"""Does distillation help early recognition? MSR Action3D, JHMDB joints and Weizmann, with all labels and with a tenth.

    python benchmarks/early_real.py DATA --work FOLDER [--only msr] [--write]

DATA holds ``skeletons/`` (MSR Action3D's ``msraction3d/`` and ``jhmdb/jhmdb_joints_split1.npz``) and ``weizmann/``. A
backbone (VA-CNN for skeletons, TSM at 112 px for Weizmann) is fitted from random weights on the labelled training clips
alone, a tenth of them for the second setting. Subject 9 of MSR Action3D, a fifth of each JHMDB class and a fifth of
Weizmann's training people choose epochs, rates and lengths; test clips choose nothing. Every row gets the same trials.
Every step is a command that is printed; what is in FOLDER already is not computed again. Some hours on two cores.

What is held fixed: one split, one fit of the backbone (on the clips that the heads train on), one choice of labels, the
width of the heads, the batch size, five trials a row; only the seed of the heads varies. With a tenth of the labels the
trials span 32 to 132 optimiser steps: too few to show whether a term helps or hurts. Nothing is concluded from it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from common import RESULTS, write_results

ROWS = {
    "neither": "alpha=0,beta=0",
    "L_ts": "beta=0",
    "L_self": "alpha=0",
    "both": "",
    "TS-LSTM*": "model=ts-lstm",
}
COMPARE = "--seeds 10 --tune 5 --precision bf16"
VACNN = (
    "vacnn --precision bf16 --set lr=0.001 --set batch_size=16 --set schedule=steps --set patience=0 --set validation=0"
)
TSM = "tsm --precision bf16 --set init=random:0 --set size=112 --set batch_size=10"
TENTH = "--set label_fraction=0.1"


@dataclass(frozen=True)
class Set:
    """One set of clips: where it lies below DATA, how its manifest is made, its two fits, and what is compared."""

    root: str
    manifest: str
    fit: str
    fit_tenth: str
    extract: str = "--stream vacnn/pool"
    compare: str = "--set epochs=16 --set milestones=10,13 --set batch_size=32"
    compare_tenth: str = "--set epochs=8 --set milestones=5,7 --set batch_size=32"


SETS = {
    "msr": Set(
        "skeletons",
        "msraction3d --set validation=9",
        f"{VACNN} --set epochs=50 --set milestones=40",
        f"{VACNN} --set epochs=40 --set milestones=30",
    ),
    "jhmdb": Set(
        "skeletons/jhmdb",
        "jhmdb-joints --set split=1 --set validation=0.2",
        f"{VACNN} --set epochs=36 --set milestones=28",
        f"{VACNN} --set epochs=36 --set milestones=28",
        compare="--set epochs=12 --set milestones=7,10 --set batch_size=32",
        compare_tenth="--set epochs=6 --set milestones=4,5 --set batch_size=32",
    ),
    "weizmann": Set(
        "weizmann",
        "folder --set 'subject=(?P<subject>[a-z]+)_' --set held_out=ido,lena",
        f"{TSM} --set epochs=60 --set milestones=45",
        f"{TSM} --set epochs=60 --set milestones=45",
        extract="--stream tsm/clip --levels 10 --size 112",
        compare="--set epochs=12 --set milestones=7,10 --set batch_size=8",
        compare_tenth="--set epochs=12 --set milestones=7,10 --set batch_size=8",
    ),
}


def kdcache(work: Path, text: str, *more: str) -> None:
    """Run one command in the work folder, and say it."""
    words = [*shlex.split(text), *more]
    print("kdcache", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "kdcache", *words], cwd=work, check=True, stdout=subprocess.DEVNULL)


def run(name: str, data: Path, work: Path, workers: int) -> dict[str, Any]:
    """Manifest, fits, features and comparisons of one set; what came out."""
    this = SETS[name]
    root = str(data / this.root)
    if not (work / f"{name}.csv").exists():
        kdcache(work, f"manifest {this.manifest} -o {name}.csv", "--root", root)
    found: dict[str, Any] = {}
    for tag, fitted, labels in (("", this.fit, ""), ("10", this.fit_tenth, TENTH)):
        cache, fit = f"cache-{name}{tag}", f"fit-{name}{tag}"
        kdcache(work, f"fit {fitted} --manifest {name}.csv --out {fit} {labels}", "--root", root)
        weights = next((work / fit).glob("*.safetensors")).relative_to(work)
        extract = f"extract --manifest {name}.csv {this.extract} --precision bf16 --weights {weights}"
        kdcache(work, f"{extract} --out {cache} --workers {workers}", "--root", root)
        lengths = this.compare_tenth if tag else this.compare
        options = f"{COMPARE} --workers {workers} {lengths} {labels}"
        rows = [word for row, options in ROWS.items() for word in ("--row", f"{row}:{options}")]
        kdcache(work, f"ablate early --shards {cache} --out compare-{name}{tag} {options}", *rows)
        setting = "all labels" if not tag else "a tenth of the labels"
        found[setting] = summary(work, f"compare-{name}{tag}", fit)
    return found


def summary(work: Path, compared: str, fit: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each row, the paired tests, and what each row chose."""
    results = pd.read_csv(work / compared / "results.csv")
    results = results[
        (results["split"] == "test") & results["metric"].isin(["auc", "acc20", "acc40", "acc60", "acc100"])
    ]
    table: dict[str, Any] = {}
    for (weights, row, metric), values in results.groupby(["weights", "row", "metric"], sort=False)["value"]:
        shown = f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
        table.setdefault(str(weights), {}).setdefault(str(row), {})[str(metric)] = shown
    tests = pd.read_csv(work / compared / "tests.csv")
    tuned = pd.read_csv(work / compared / "tuning.csv")
    found: dict[str, Any] = {"test, mean ± std of 10 seeds": table, "tests": tests.round(4).to_dict("records")}
    found["chosen"] = tuned[tuned["chosen"]][["row", "trial", "lr", "epochs", "score"]].round(4).to_dict("records")
    metrics = json.loads((work / fit / "metrics.json").read_text())
    fitted = {split: round(metrics[split]["top1"], 1) for split in ("validation", "test")}
    found["fitted backbone, whole clips, top-1 %"] = fitted
    return found


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is computed")
    parser.add_argument("--only", choices=list(SETS), help="one of the sets")
    parser.add_argument("--workers", type=int, default=2, help="processes of extract and ablate")
    parser.add_argument("--write", action="store_true", help="store figures and curves in benchmarks/results")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    results = {
        name: run(name, given.data.resolve(), given.work, given.workers) for name in SETS if given.only in (None, name)
    }
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if given.write:
        write_results("early_real", results)
        for name in results:
            for tag in ("", "10"):
                source = given.work / f"compare-{name}{tag}" / "curve.png"
                shutil.copyfile(source, RESULTS / f"early_{name}{tag}.png")


if __name__ == "__main__":
    main()
