"""Does distillation help? Every row of two papers' main tables over draws of labels, groups and backbone fits.

    python benchmarks/evidence.py DATA --work FOLDER [--only msr] [--hours 3] [--write]

DATA holds ``skeletons/`` (MSR Action3D's files; ``jhmdb/`` with JHMDB's joints and splits) and ``weizmann/`` (the
videos, as ``manifests/`` says). ``draw-N.csv`` and ``draw-N-fit.csv`` in the stored commands are what this script makes
of the manifests: it assigns clips to splits. A *draw* has a manifest of its own (which
groups validate; of Weizmann also which person tests), labels of its own where only a tenth is kept, and a backbone of
its own: for joints one fitted from random weights on its labelled training clips, for Weizmann one of random weights.
Where all labels are kept the features of training clips are cross-fitted: each clip's come from a network that has not
seen its label. Settings are chosen in each draw by its own validation clips, from the same number of trials for every
row; test clips choose nothing.

Every step is a command that is printed; what is in FOLDER already is not computed again, so that an interrupted call
goes on. After ``--hours`` no further step is begun. It takes hours on two cores. With ``--write`` each comparison is
stored when it has ended, beside those stored before, which are not run again unless ``--only`` names them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import RESULTS, write_results
from kdcache.runtime import cores
from kdcache.sources import open_source

SEEDS, PARTS, TRIALS = 3, 3, 8
ORDER = ("manifest", "fit", "extract", "ablate")  # of the commands, which draws run side by side
TOGETHER = 16  # runs that differ in numbers alone train in one pass

EARLY = {
    "Without distillation": "alpha=0,beta=0",
    "Teacher-student only": "beta=0",
    "Self-distillation only": "alpha=0",
    "Both": "",
    "TS-LSTM*": "model=ts-lstm",
    "RankLSTM": "model=rank-lstm",
    "A classifier for each level": "model=levels",
    "KNN": "model=knn",
}
ANTICIPATION = {
    "Without distillation": "loss_d=none",
    "L_direct": "loss_d=direct",
    "L~_d(R, A)": "loss_d=RA",
    "L~_d(A, R)": "loss_d=AR",
    "L_d(A, R)": "loss_d=both",
    "Recognition network on the half": "network=recognition-early",
    "Recognition, whole clips": "network=recognition",
}

Drawn = Callable[[pd.DataFrame, np.random.Generator, int], pd.Series]
"""A manifest's rows, random numbers and the draw → the split of each row."""


@dataclass(frozen=True)
class Comparison:
    """One comparison: where its clips lie below DATA, how they are drawn, fitted, extracted and compared."""

    root: str
    manifest: str
    """``{either}`` is 1 in draws 0, 2 …, and 2 in draws 1, 3 …"""
    drawn: Drawn
    fit: str | None
    """None: a draw's network has random weights of its own, and has seen no label."""
    extract: str
    method: str
    rows: dict[str, str]
    compare: str
    draws: int = 5
    labels: float = 1.0
    halves: bool = False
    """Anticipation: each clip is a pair, its first half observed, the whole clip the action."""


def msr(rows: pd.DataFrame, rng: np.random.Generator, draw: int) -> pd.Series:
    """Two of the five training subjects validate, others than in the draws before."""
    subjects = sorted(rows.loc[rows["split"] == "train", "subject"].unique())
    taken, held = list[set[Any]](), np.array([])
    for each in range(draw + 1):
        own = np.random.default_rng([1, each])
        held = own.choice(subjects, 2, replace=False)
        while set(held) in taken:
            held = own.choice(subjects, 2, replace=False)
        taken.append(set(held))
    return rows["split"].mask((rows["split"] == "train") & rows["subject"].isin(held), "validation")


def jhmdb(rows: pd.DataFrame, rng: np.random.Generator, draw: int) -> pd.Series:
    """A fifth of each class of the training clips validates: the joints' file names neither people nor videos."""
    split = rows["split"].copy()
    for _, part in rows[rows["split"] == "train"].groupby("label", sort=True):
        split[rng.choice(part.index, round(len(part) / 5), replace=False)] = "validation"
    return split


def weizmann(rows: pd.DataFrame, rng: np.random.Generator, draw: int) -> pd.Series:
    """The draw's person tests, two of the others validate."""
    people = sorted(rows["subject"].unique())
    test = people.pop(draw)
    held = rng.choice(people, 2, replace=False)
    split = pd.Series("train", index=rows.index)
    return split.mask(rows["subject"].isin(held), "validation").mask(rows["subject"] == test, "test")


SKELETON = "vacnn-small --set keep=last"
FRAMES = "--frames 16 --size 64"
PEOPLE = "folder --set 'subject=(?P<subject>[a-z]+)_' --set held_out=daria"
HEAD = "--set hidden=64 --set teacher_hidden=32 --set epochs=20 --set milestones=12,16"
"""Lengths are raised to 500 optimiser steps, and searched from there."""
LARGER = HEAD.replace("epochs=20 --set milestones=12,16", "epochs=14 --set milestones=8,11")
"""For a set of which 14 epochs are as many steps."""


def of_skeletons(root: str, manifest: str, drawn: Drawn, draws: int, head: str, tenth: bool) -> Comparison:
    """Early recognition on joints, with all labels or a tenth. One labelled clip a class leaves no part to fit on."""
    labels, steps = (0.1, " --set epochs=80 --set milestones=56,72") if tenth else (1.0, "")
    streams = "--stream vacnn-small/pool" + ("" if tenth else " --stream vacnn-small/logits")
    return Comparison(
        root, manifest, drawn, SKELETON + steps, streams, "early", EARLY,
        f"{head} --set batch_size=16 --set stream=vacnn-small/{'pool' if tenth else 'logits'}", draws, labels,
    )  # fmt: skip


COMPARISONS = {
    f"{name}{'-tenth' * tenth}": of_skeletons(root, manifest, drawn, draws, head, tenth)
    for name, root, manifest, drawn, draws, head in (
        ("msr", "skeletons", "msraction3d", msr, 5, HEAD),
        ("jhmdb", "skeletons/jhmdb", "jhmdb-joints --set split={either}", jhmdb, 6, LARGER),
    )
    for tenth in (True, False)
} | {
    "weizmann": Comparison(
        "weizmann", PEOPLE, weizmann, None,
        f"--stream i3d-rgb/pool --levels 10 {FRAMES}", "early", EARLY,
        f"{HEAD} --set batch_size=8 --set standardise=true", draws=6,
    ),
    "weizmann-anticipation": Comparison(
        "weizmann", PEOPLE, weizmann, None,
        f"--stream i3d-rgb/mixed4a {FRAMES}", "anticipation", ANTICIPATION,
        "--set head=light --set width=128 --set batch_size=8", draws=6, halves=True,
    ),
}  # fmt: skip


class Work:
    """The folder of the runs: commands are said, what is there is not made again, and none begins after the end."""

    def __init__(self, data: Path, folder: Path, workers: int, hours: float | None) -> None:
        self.data, self.folder, self.workers = data, folder, workers
        self.threads = max(1, cores() // workers)
        self.end = None if hours is None else time.monotonic() + 3600 * hours
        self.commands: list[str] = []
        """Every command of the comparison at hand, also those that had ended before."""

    def kdcache(self, text: str, *more: str, threads: int | None = None) -> None:
        """One command in the folder, of so many threads; ``TimeoutError`` where the time is up."""
        if self.end is not None and time.monotonic() > self.end:
            raise TimeoutError
        words = [*shlex.split(text), *more]
        print("kdcache", shlex.join(words), flush=True)
        began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
        subprocess.run([sys.executable, "-m", "kdcache", *words], cwd=self.folder, check=True, env=environment)
        print(f"  {time.monotonic() - began:.0f} s: kdcache {' '.join(words[:2])} … {words[-1]}", flush=True)

    def once(self, mark: str, text: str, *more: str, threads: int | None = None) -> None:
        """The same, unless it has ended well before."""
        self.commands.append(f"kdcache {shlex.join([*shlex.split(text), *more])}".replace(str(self.data), "DATA"))
        path = self.folder / mark
        if not path.exists():
            self.kdcache(text, *more, threads=threads)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def root(self, name: str) -> tuple[str, str]:
        """The option that says where a comparison's sources lie."""
        return "--root", str(self.data / COMPARISONS[name].root)

    def rows(self, name: str, draw: int) -> pd.DataFrame:
        """All clips of a draw."""
        this, path = COMPARISONS[name], Path(name) / f"clips-{draw}.csv"
        (self.folder / name).mkdir(exist_ok=True)
        call = f"manifest {this.manifest.format(either=1 + draw % 2)} -o {path}"
        self.once(f"{path}.done", call, *self.root(name))
        return pd.read_csv(self.folder / path, dtype={"clip_id": str})

    def manifest(self, name: str, draw: int) -> Path:
        """The manifest of a draw, relative to the folder."""
        this, path = COMPARISONS[name], Path(name) / f"draw-{draw}.csv"
        rows = self.rows(name, draw)
        if not (self.folder / path).exists():
            rows["split"] = this.drawn(rows, np.random.default_rng([1, draw]), draw)
            if this.halves:
                rows = pairs(rows, self.data / this.root)
            rows.to_csv(self.folder / path, index=False)
        return path

    def fitted(self, name: str, draw: int) -> Path:
        """The manifest of a draw's fit: validation clips are scored at its end, and no test clip takes part."""
        manifest = self.manifest(name, draw)
        path = manifest.with_stem(f"{manifest.stem}-fit")
        rows = pd.read_csv(self.folder / manifest, dtype={"clip_id": str})
        rows = rows[rows["split"] != "test"].replace({"split": {"validation": "test"}})
        rows.to_csv(self.folder / path, index=False)
        return path

    def features(self, name: str, draw: int) -> None:
        """Fit the draw's backbone where it is fitted, and extract with it."""
        this = COMPARISONS[name]
        manifest = self.manifest(name, draw)
        backbone, weights = self.fit(name, draw) if this.fit else ("i3d-rgb", f"random:{draw}")
        extract = f"extract --manifest {manifest} {this.extract} --weights {backbone}={weights}"
        self.once(
            f"{name}/cache-{draw}.done",
            f"{extract} -o {name}/cache-{draw} --workers 1",
            *self.root(name),
            threads=self.threads,
        )

    def fit(self, name: str, draw: int) -> tuple[str, Path]:
        """The backbone of a draw, and its weights relative to the folder."""
        this = COMPARISONS[name]
        assert this.fit is not None
        fit = Path(name) / f"fit-{draw}"
        labels = f"--set label_fraction={this.labels} --set label_seed={draw}" if this.labels < 1 else ""
        parts = "" if this.labels < 1 else f"--cross-fit {PARTS}"
        call = f"fit {this.fit} --set validation=0 --seed {draw} --manifest {self.fitted(name, draw)} -o {fit}"
        self.once(f"{fit}.done", f"{call} {parts} {labels}", *self.root(name), threads=self.threads)
        weights = next((self.folder / fit).glob("*.safetensors")) if this.labels < 1 else self.folder / fit
        return shlex.split(this.fit)[0], weights.relative_to(self.folder)

    def compare(self, name: str) -> dict[str, Any]:
        """Fits, features and the comparison over all draws; what came out."""
        this = COMPARISONS[name]
        self.commands.clear()
        with ThreadPoolExecutor(self.workers) as pool:  # a fit of one thread each is faster than one of all
            list(pool.map(partial(self.features, name), range(this.draws)))
        rows = [word for row, options in this.rows.items() for word in ("--row", f"{row}:{options}")]
        labels = f"--set label_fraction={this.labels}" if this.labels < 1 else ""
        call = f"ablate {this.method} --shards {name}/cache-{{draw}} --draws {this.draws} --seeds {SEEDS}"
        call += f" --tune {TRIALS} --workers {self.workers} --together {TOGETHER} --set eval_every=5 {this.compare}"
        call += f" {labels} -o {name}/compared"
        self.once(f"{name}/compared.done", call, *rows)
        return summary(self.folder / name / "compared") | {
            "date": date.today().isoformat(),
            "commands": sorted(set(self.commands), key=lambda text: (ORDER.index(text.split()[1]), text)),
        }


def pairs(rows: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Each whole clip twice: its first half, observed, and all of it, the action."""
    found = []
    for row in rows.to_dict("records"):
        with open_source(root / row["source"]) as source:
            seconds = source.info.duration_s
        whole = row | {"pair": row["clip_id"], "start_s": 0.0, "stop_s": seconds}
        found.append(whole | {"clip_id": f"{row['clip_id']}-half", "role": "observed", "stop_s": seconds / 2})
        found.append(whole | {"role": "action"})
    return pd.DataFrame(found)


def summary(folder: Path) -> dict[str, Any]:
    """Effects, levels, what was chosen: the numbers of a comparison's report, and those of each draw and seed."""
    results = pd.read_csv(folder / "results.csv")
    tests = pd.read_csv(folder / "tests.csv")
    tuned = pd.read_csv(folder / "tuning.csv")
    monitor = tests["metric"].iloc[0]
    known = results[(results["split"] == "test") & (results["metric"] == monitor)]
    units = known.groupby(["weights", "row", "split_column", "draw"], sort=False)["value"].mean()
    levels = {
        weights: {row: f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for row, v in its.groupby("row", sort=False)}
        for weights, its in units.groupby("weights", sort=False)
    }
    each = {
        weights: {
            row: [v["value"].round(3).tolist() for _, v in its.groupby("draw")]
            for row, its in w.groupby("row", sort=False)
        }
        for weights, w in known.sort_values("seed", kind="stable").groupby("weights", sort=False)
    }
    chosen = tuned[tuned["chosen"]][["row", "draw", "trial", "settings", "score", "edge"]]
    return {
        "metric": monitor,
        "test, mean ± std over draws": levels,
        "test, draws × seeds": each,
        "effects": json.loads(tests.round(4).to_json(orient="records")),
        "chosen": json.loads(chosen.to_json(orient="records")),
        "steps": sorted(int(s) for s in results["steps"].dropna().unique()),
    }


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is computed")
    parser.add_argument("--only", action="append", choices=list(COMPARISONS), help="one of the comparisons; repeatable")
    parser.add_argument("--workers", type=int, default=2, help="processes of extract and ablate")
    parser.add_argument("--hours", type=float, help="begin nothing after so many")
    parser.add_argument("--write", action="store_true", help="store what has ended in benchmarks/results")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    work = Work(given.data.resolve(), given.work.resolve(), given.workers, given.hours)
    known = stored()
    wanted = given.only or [name for name in COMPARISONS if name not in known]
    if not wanted:
        print("all comparisons are stored: name those that are to be run again by --only", flush=True)
    for name in wanted:
        try:
            made = work.compare(name)
        except TimeoutError:
            print(f"{name}: the time is up; the same call goes on", flush=True)
            break
        print(json.dumps({name: made}, indent=2, ensure_ascii=False), flush=True)
        if given.write:
            found = stored() | {name: made}  # another call may have stored one meanwhile
            write_results("evidence", {name: found[name] for name in COMPARISONS if name in found})
            shutil.copyfile(work.folder / name / "compared" / "effects.png", RESULTS / f"effects_{name}.png")


def stored() -> dict[str, Any]:
    """The comparisons that were stored before, by name."""
    path = RESULTS / "evidence.json"
    found: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    return found


if __name__ == "__main__":
    main()
