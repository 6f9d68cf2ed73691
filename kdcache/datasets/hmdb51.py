"""HMDB51: the three official splits, 70 training and 30 test clips a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import read_lines
from kdcache.datasets.splits import OFFICIAL, Wanted, official
from kdcache.errors import ManifestError

LAYOUT = """
testTrainMulti_7030_splits/brush_hair_test_split1.txt, …    also annotations/ or the root
hmdb51_org/brush_hair/<clip>.avi                            or <class>/… directly below the root
"""

LAYOUTS = {"videos": ["hmdb51_org/{c}/{v}.avi", "{c}/{v}.avi", "videos/{c}/{v}.avi"]}


def manifest(root: Path, *, split: Wanted = 1, annotations: Path | None = None) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a clip that the split uses, named ``<class>/<file without suffix>``.

    Args:
        root: the data root; see ``LAYOUT``.
        split: which official split; ``all``: the clips that any uses, with a column for each, ``split_1`` ….
        annotations: folder of the official lists.
    """
    usual = ("testTrainMulti_7030_splits", "annotations", "annotations/hmdb51", "")
    clips, unused = read_lists(root, annotations, usual, split, "hmdb51")
    fields = {n: {"c": c, "v": n.partition("/")[2]} for n, c in zip(clips["name"], clips["class"], strict=True)}
    located = locate(root, LAYOUTS, fields, others={n.partition("/")[2] for n in unused})
    report = located.report
    if unused:
        which = f"split {split} does" if split != "all" else f"the {OFFICIAL} splits do"
        report = report.noting(f"{which} not use {len(unused)} clips of {'its' if split != 'all' else 'their'} lists")
    return whole_clips(clips, located), report


def read_lists(
    root: Path, annotations: Path | None, usual: Sequence[str], split: Wanted, dataset: str
) -> tuple[pd.DataFrame, list[str]]:
    """Lists ``<class>_test_split<k>.txt`` (HMDB51, JHMDB) with lines ``<file> 1|2|0``: train, test, not used.

    Args:
        root: the data root.
        annotations: folder of the lists; searched for in ``usual`` if ``None``.
        usual: where to look below the root.
        split: which lists.
        dataset: its name, for messages.

    Returns:
        ``name`` (class/file without suffix), ``class``, ``label`` (in the sorted order of the classes), ``split`` (and
        ``split_1`` … of all); and the names of clips that the split does not use.

    Raises:
        OptionError: no such lists.
        ManifestError: one of the three is missing where all are wanted; lines of another form, with their numbers.
    """
    first = f"brush_hair_test_split{1 if split == 'all' else split}.txt"
    folder = annotation_folder(root, annotations, [first], usual, dataset)
    every = official(lambda k: _read(folder, k), split)
    used = (every.filter(regex="^split") != "").any(axis=1)
    return every[used].reset_index(drop=True), every.loc[~used, "name"].tolist()


def _read(folder: Path, split: int) -> pd.DataFrame:
    """The lists of one split, with the clips that it does not use: their ``split`` is empty."""
    rows: list[tuple[str, str, int, str]] = []
    files = sorted(folder.glob(f"*_test_split{split}.txt"))
    if not files:
        raise ManifestError(str(folder), [f"has no lists *_test_split{split}.txt; unpack those of all splits"])
    for label, file in enumerate(files):
        name = file.name.removesuffix(f"_test_split{split}.txt")
        for i, line in enumerate(read_lines(file), 1):
            match = re.fullmatch(r"\s*(.+?)\s+([012])\s*", line)
            if match:
                part = {"1": "train", "2": "test", "0": ""}[match[2]]
                rows.append((f"{name}/{Path(match[1]).stem}", name, label, part))
            elif line.strip():
                raise ManifestError(str(file), [f"line {i}: {line!r} is not '<file> 0|1|2'"])
    return pd.DataFrame(rows, columns=["name", "class", "label", "split"]).astype({"label": "Int64"})
