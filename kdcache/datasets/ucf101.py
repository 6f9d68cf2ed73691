"""UCF101: the three official splits, and the early-recognition paper's split by groups.

``protocol="early"`` puts groups 1–15 into train (8,056 clips), 16–18 into val (1,582) and 19–25 into test (3,682).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import filled_lines
from kdcache.datasets.splits import Wanted, official
from kdcache.errors import ManifestError

LAYOUT = """
ucfTrainTestlist/classInd.txt                          also annotations/ or the root
ucfTrainTestlist/trainlist01.txt, testlist01.txt, …
UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi    or <class>/… directly below the root
"""

LAYOUTS = {"videos": ["UCF-101/{path}", "{path}", "videos/{path}"]}


def manifest(
    root: Path,
    *,
    protocol: Literal["official", "early"] = "official",
    split: Wanted = 1,
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a clip, named as its file without suffix.

    Args:
        root: the data root; see ``LAYOUT``.
        protocol: the official splits, or the early-recognition paper's.
        split: which official split; ``all`` has a column for each, ``split_1`` …, beside the protocol's own.
        annotations: folder of the official lists.
    """
    usual = ("ucfTrainTestlist", "annotations", "annotations/ucf101", "")
    folder = annotation_folder(root, annotations, ["classInd.txt"], usual, "ucf101")
    number = _classes(folder / "classInd.txt")
    clips = official(lambda k: _read(folder, k), split)
    unlisted = sorted(set(clips["class"].str.lower()) - set(number))
    if unlisted:
        raise ManifestError(str(folder / "classInd.txt"), [f"has no class {name}" for name in unlisted])
    clips["label"] = clips["class"].str.lower().map(number).astype("Int64")
    clips["group"] = clips["name"].str.extract(r"_(g\d+)_c\d+$", expand=False)
    if protocol == "early":
        if nameless := clips.loc[clips["group"].isna(), "name"].tolist():
            raise ManifestError(str(folder), [f"{name} names no group, as v_Biking_g01_c01 does" for name in nameless])
        clips["split"] = clips["group"].str[1:].astype(int).map(_early)
        clips = clips.sort_values("name", ignore_index=True)
    located = locate(
        root, LAYOUTS, {name: {"path": path} for name, path in zip(clips["name"], clips["path"], strict=True)}
    )
    return whole_clips(clips.drop(columns="path"), located), located.report


def _classes(path: Path) -> dict[str, int]:
    """Name in lower case → number from 0."""
    found: dict[str, int] = {}
    for i, line in filled_lines(path):
        match = re.fullmatch(r"([0-9]{1,9})\s+(\S+)", line)
        if not match:
            raise ManifestError(str(path), [f"line {i}: {line[:60]!r} is not '<number> <class>'"])
        found[match[2].lower()] = int(match[1]) - 1
    return found


def _read(folder: Path, split: int) -> pd.DataFrame:
    """The lists of one split: ``name``, ``path``, ``class``, ``split``."""
    rows = []
    for part in ("train", "test"):
        for _, line in filled_lines(folder / f"{part}list{split:02d}.txt"):
            path = line.split()[0]
            # The class is the folder's: file names spell HandstandPushups with a capital S.
            rows.append((Path(path).stem, path, path.partition("/")[0], part))
    return pd.DataFrame(rows, columns=["name", "path", "class", "split"])


def _early(group: int) -> str:
    """The early-recognition paper's split by group number."""
    return "train" if group <= 15 else "val" if group <= 18 else "test"
