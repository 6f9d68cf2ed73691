"""JHMDB's 2-D joints: 14 classes, 15 joints a frame, about 430 clips train and 180 test in each of three splits.

One archive a split holds all clips; a row names its clip by the span that it has in the archive laid end to end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kdcache.datasets.listing import DatasetReport, Folders
from kdcache.errors import OptionError
from kdcache.skeletons.jhmdb import FPS, clips_of

LAYOUT = """
jhmdb_joints_split1.npz   and _split2, _split3; also below jhmdb/ or skeletons/jhmdb/
"""

FOLDERS = ("", "jhmdb/", "skeletons/jhmdb/")


def manifest(
    root: Path,
    *,
    split: Literal[1, 2, 3] = 1,
    validation: float = 0.0,
    seed: int = 0,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a clip, ``split1_train_000`` and so on in the archive's order; classes are numbered by sorted names.

    Args:
        root: the data root; see ``LAYOUT``.
        split: which of the three splits.
        validation: share of each class's training clips that validates instead. They are drawn one by one: which clips
            were cut from the same film is not known, so validation is kinder than the test.
        seed: of that draw.
    """
    if not 0 <= validation < 1:
        raise OptionError(f"validation is {validation}: give a share of the training clips, from 0 to below 1.")
    folders = Folders(root)
    name = f"jhmdb_joints_split{split}.npz"
    source = next((path for place in FOLDERS if (path := folders.find(f"{place}{name}")) is not None), None)
    if source is None:
        raise OptionError(f"jhmdb-joints: no {name} below {root}; expected:\n{LAYOUT}")
    clips = clips_of(root / source)
    classes = sorted({clip.label for clip in clips})
    rows = pd.DataFrame(
        {
            "clip_id": [f"split{split}_{clip.part}_{clip.number:03d}" for clip in clips],
            "source": source,
            "start_s": [clip.start / FPS for clip in clips],
            "stop_s": [clip.stop / FPS for clip in clips],
            "class": [clip.label for clip in clips],
            "label": pd.array([classes.index(clip.label) for clip in clips], "Int64"),
            "split": [clip.part for clip in clips],
        }
    )
    rows.loc[_drawn(rows, validation, seed), "split"] = "validation"
    return rows, DatasetReport(found=1)


def _drawn(rows: pd.DataFrame, share: float, seed: int) -> list[int]:
    """Rows of training clips to hold out: ``share`` of each class, rounded."""
    generator = np.random.default_rng(seed)
    drawn: list[int] = []
    for label in sorted(set(rows["label"])):
        members = np.flatnonzero((rows["label"] == label) & (rows["split"] == "train"))
        drawn += generator.permutation(members)[: round(share * len(members))].tolist()
    return drawn
