"""SYSU 3D Human-Object Interaction: 480 sequences, 12 classes, 40 subjects, by an index file.

The release's own layout differs between mirrors, so a ``clips.csv`` says where each sequence lies.

``split`` is one half split, as the early-recognition paper's percentages, all k/240, imply: subjects 1–20 train
[reconstructed: which half]. ``split_01`` … ``split_30`` are random halves; the dataset's authors average 30, and their
lists are not at hand [reconstructed].
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import read_frame
from kdcache.datasets.splits import column as split_column
from kdcache.datasets.splits import random_halves, read_halves
from kdcache.errors import ManifestError
from kdcache.manifest import SKELETON

LAYOUT = """
clips.csv        columns clip_id,subject,label,rgb_path,skel_path; also in annotations/; paths relative to the root
"""

SEQUENCES = 480
HALVES = 30


def manifest(
    root: Path,
    *,
    setting: Literal[1, 2] = 2,
    seed: int = 0,
    halves: Path | None = None,
    modality: Literal["skeleton", "rgb", "both"] = "skeleton",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a sequence; in every split 240 train and 240 test.

    Args:
        root: the data root; see ``LAYOUT``.
        setting: 1: half of each class's sequences train; 2: half of the subjects train. ``split`` takes the first half
            in the order of the numbers in their names.
        seed: of the random halves.
        halves: text file that says them instead: a line for each split with the subjects (setting 1: the clips) that
            train, separated by blanks.
        modality: which files are the sources; ``both``: videos, with the skeletons in a column of their own, so that
            streams of either can be extracted into one cache.
        annotations: folder of ``clips.csv``.
    """
    file = (
        annotation_folder(root, annotations, ["clips.csv"], ("", "annotations", "annotations/sysu"), "sysu")
        / "clips.csv"
    )
    table = read_frame(file)
    wanted = {"skeleton": ["skel_path"], "rgb": ["rgb_path"], "both": ["rgb_path", "skel_path"]}[modality]
    lacking = [name for name in ("clip_id", "subject", "label", *wanted) if name not in table]
    if lacking:
        raise ManifestError(str(file), [f"lacks the column {name}" for name in lacking])
    wrong = table.index[~table["label"].str.fullmatch("[0-9]{1,9}")]
    if len(wrong):
        raise ManifestError(
            str(file), [f"line {i + 2}: label {table['label'][i]!r} is not a whole number" for i in wrong]
        )
    clips = table[["clip_id", "subject"]].rename(columns={"clip_id": "name"})
    clips["label"] = table["label"].astype(int).astype("Int64")
    groups = [sorted(set(clips["subject"]), key=_numbers)]
    if setting == 1:
        groups = [sorted(part, key=_numbers) for _, part in clips.groupby("label")["name"]]
    of = clips["subject" if setting == 2 else "name"]
    if halves is not None:
        drawn = read_halves(halves, [name for group in groups for name in group])
    else:
        every = (random_halves(group, HALVES, seed) for group in groups)
        drawn = [set.union(*parts) for parts in zip(*every, strict=True)]
    parts = {"split": {name for group in groups for name in group[: len(group) // 2]}}
    parts |= {split_column(i, len(drawn)): half for i, half in enumerate(drawn, 1)}
    for name, half in parts.items():
        clips[name] = of.isin(half).map({True: "train", False: "test"})
    found = []
    for column in wanted:
        paths = {name: {"path": path} for name, path in zip(table["clip_id"], table[column], strict=True)}
        found.append(locate(root, {column: ["{path}"]}, paths))
    located = found[0]
    report = located.report
    if modality == "both":
        clips[SKELETON] = [found[1].paths[name] for name in clips["name"]]
        report = replace(report, missing=(*report.missing, *found[1].report.missing))
    if len(clips) != SEQUENCES:
        report = report.noting(f"clips.csv lists {len(clips)} sequences, not {SEQUENCES}")
    return whole_clips(clips, located), report


def _numbers(name: str) -> tuple[list[int], str]:
    """Sorts s2 before s10."""
    return [int(digits) for digits in re.findall(r"\d+", name)], name
