"""HMDB51: the three official splits, 70 training and 30 test clips a class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import Report, annotation_folder, locate, whole_clips
from kdcache.errors import ManifestError

LAYOUT = """
testTrainMulti_7030_splits/brush_hair_test_split1.txt, …    also annotations/ or the root
hmdb51_org/brush_hair/<clip>.avi                            or <class>/… directly below the root
"""

LAYOUTS = {"videos": ["hmdb51_org/{c}/{v}.avi", "{c}/{v}.avi", "videos/{c}/{v}.avi"]}


def manifest(
    root: Path, *, split: Literal[1, 2, 3] = 1, annotations: Path | None = None
) -> tuple[pd.DataFrame, Report]:
    """One row a clip that the split uses, named ``<class>/<file without suffix>``.

    Args:
        root: the data root; see ``LAYOUT``.
        split: which official split.
        annotations: folder of the official lists.
    """
    usual = ("testTrainMulti_7030_splits", "annotations", "annotations/hmdb51", "")
    folder = annotation_folder(root, annotations, [f"brush_hair_test_split{split}.txt"], usual, "hmdb51")
    clips, unused = read_lists(folder, split)
    fields = {n: {"c": c, "v": n.partition("/")[2]} for n, c in zip(clips["name"], clips["class"], strict=True)}
    located = locate(root, LAYOUTS, fields, others={n.partition("/")[2] for n in unused})
    report = located.report
    if unused:
        report = report.noting(f"split {split} does not use {len(unused)} clips of its lists")
    return whole_clips(clips, located), report


def read_lists(folder: Path, split: int) -> tuple[pd.DataFrame, list[str]]:
    """Lists ``<class>_test_split<k>.txt`` (HMDB51, JHMDB) with lines ``<file> 1|2|0``: train, test, not used.

    Returns:
        ``name`` (class/file without suffix), ``class``, ``label`` (in the sorted order of the classes), ``split``; and
        the names of clips that the split does not use.

    Raises:
        ManifestError: lines of another form, with their numbers.
    """
    rows: list[tuple[str, str, int, str]] = []
    files = sorted(folder.glob(f"*_test_split{split}.txt"))
    for label, file in enumerate(files):
        name = file.name.removesuffix(f"_test_split{split}.txt")
        for i, line in enumerate(file.read_text().splitlines(), 1):
            match = re.fullmatch(r"\s*(.+?)\s+([012])\s*", line)
            if match:
                part = {"1": "train", "2": "test", "0": ""}[match[2]]
                rows.append((f"{name}/{Path(match[1]).stem}", name, label, part))
            elif line.strip():
                raise ManifestError(str(file), [f"line {i}: {line!r} is not '<file> 0|1|2'"])
    clips = pd.DataFrame(rows, columns=["name", "class", "label", "split"]).astype({"label": "Int64"})
    used = clips["split"] != ""
    return clips[used].reset_index(drop=True), clips.loc[~used, "name"].tolist()
