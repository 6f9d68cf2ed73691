"""Does distillation help? Every row of two papers' main tables over draws of labels, groups and backbone fits.

    python benchmarks/evidence.py DATA --work FOLDER [--only msr] [--hours 3] [--write]

DATA holds ``skeletons/`` (MSR Action3D, JHMDB's joints) and ``weizmann/``. A *draw* has a manifest of its own (which
groups validate; of Weizmann also which person tests), labels of its own where only a tenth is kept, and a backbone fitted
from random weights on its labelled training clips. Where all labels are kept the features of training clips are
cross-fitted: each clip's come from a network that has not seen its label. Settings are chosen on draw 0, by validation
clips alone, from the same number of trials for every row; test clips choose nothing.

Every step is a command that is printed; what is in FOLDER already is not computed again, so that an interrupted call
goes on. After ``--hours`` no further step is begun. About four hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import RESULTS, write_results

SEEDS, PARTS = 3, 4

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
    drawn: Drawn
    fit: str
    extract: str
    method: str
    rows: dict[str, str]
    compare: str
    draws: int = 5
    labels: float = 1.0
    halves: bool = False
    """Anticipation: each clip is a pair, its first half observed, the whole clip the action."""
    features: str = ""
    """Name of the comparison whose fits are used."""


def msr(rows: pd.DataFrame, rng: np.random.Generator, draw: int) -> pd.Series:
    """Two of the five training subjects validate."""
    subjects = sorted(rows.loc[rows["split"] == "train", "subject"].unique())
    held = rng.choice(subjects, 2, replace=False)
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
