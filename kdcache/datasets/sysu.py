"""SYSU 3D Human-Object Interaction: 480 sequences, 12 classes, 40 subjects, by an index file.

The release's own layout differs between mirrors, so a ``clips.csv`` says where each sequence lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kdcache.datasets.listing import Report, annotation_folder, locate, whole_clips
from kdcache.errors import ManifestError

LAYOUT = """
clips.csv        columns clip_id,subject,label,rgb_path,skel_path; also in annotations/; paths relative to the root
"""

SEQUENCES = 480


def manifest(
    root: Path,
    *,
    setting: Literal[1, 2] = 2,
    seed: int = 0,
    modality: Literal["skeleton", "rgb"] = "skeleton",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, Report]:
    """One row a sequence; half of them train, 240 test.

    Args:
        root: the data root; see ``LAYOUT``.
        setting: 1: half of each class's sequences train; 2: half of the subjects train.
        seed: which random half; the authors average 30.
        modality: which files are the sources.
        annotations: folder of ``clips.csv``.
    """
    file = (
        annotation_folder(root, annotations, ["clips.csv"], ("", "annotations", "annotations/sysu"), "sysu")
        / "clips.csv"
    )
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    column = {"skeleton": "skel_path", "rgb": "rgb_path"}[modality]
    lacking = [name for name in ("clip_id", "subject", "label", column) if name not in table]
    if lacking:
        raise ManifestError(str(file), [f"lacks the column {name}" for name in lacking])
    wrong = table.index[~table["label"].str.fullmatch(r"\d+")]
    if len(wrong):
        raise ManifestError(
            str(file), [f"line {i + 2}: label {table['label'][i]!r} is not a whole number" for i in wrong]
        )
    clips = table[["clip_id", "subject"]].rename(columns={"clip_id": "name"})
    clips["label"] = table["label"].astype(int).astype("Int64")
    clips["split"] = _halves(clips, setting, seed)
    paths = {name: {"path": path} for name, path in zip(table["clip_id"], table[column], strict=True)}
    located = locate(root, {modality: ["{path}"]}, paths)
    report = located.report
    if len(clips) != SEQUENCES:
        report = report.noting(f"clips.csv lists {len(clips)} sequences, not {SEQUENCES}")
    return whole_clips(clips, located), report


def _halves(clips: pd.DataFrame, setting: int, seed: int) -> list[str]:
    """Which rows train: a random half of the subjects, or of each class."""
    generator = np.random.default_rng(seed)
    if setting == 2:
        subjects = sorted(set(clips["subject"]))
        chosen = {subjects[i] for i in generator.permutation(len(subjects))[: len(subjects) // 2]}
        return ["train" if subject in chosen else "test" for subject in clips["subject"]]
    train: set[int] = set()
    for label in sorted(set(clips["label"])):
        members = np.flatnonzero(clips["label"] == label)
        train |= set(generator.permutation(members)[: len(members) // 2].tolist())
    return ["train" if row in train else "test" for row in range(len(clips))]
