"""EGTEA Gaze+: cropped action clips, three official splits, 106 actions.

For anticipation from whole sessions use the dataset ``rulstm`` with its EGTEA lists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import read_lines
from kdcache.datasets.splits import Wanted, official
from kdcache.errors import ManifestError

LAYOUT = """
action_annotation/train_split1.txt, test_split1.txt, …    also annotations/ or the root
cropped_clips/P07-R01-PastaSalad/P07-R01-PastaSalad-91700-93600-F002751-F002808.mp4
"""

LAYOUTS = {"videos": ["cropped_clips/{s}/{n}.mp4", "cropped_clips/{n}.mp4", "{s}/{n}.mp4", "{n}.mp4"]}
_NUMBER = re.compile("0*[1-9][0-9]{0,8}")
_CLIP = re.compile(r"(?P<session>(?P<subject>[^-]+)-.+)-\d+-\d+-F\d+-F\d+")


def manifest(
    root: Path,
    *,
    split: Wanted = 1,
    target: Literal["action", "verb", "noun"] = "action",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a clip, named as its file without suffix; classes count from 0 (the lists count from 1).

    Args:
        root: the data root; see ``LAYOUT``.
        split: which official split; ``all`` has a column for each, ``split_1`` ….
        target: what ``label`` is; ``verb`` and ``noun`` have their own columns in any case.
        annotations: folder of the split lists.
    """
    wanted = f"train_split{1 if split == 'all' else split}.txt"
    usual = ("action_annotation", "annotations", "annotations/egtea", "")
    folder = annotation_folder(root, annotations, [wanted], usual, "egtea")
    clips = official(lambda k: _read(folder, k, target), split)
    fields = {n: {"n": n, "s": s} for n, s in zip(clips["name"], clips["session"], strict=True)}
    located = locate(root, LAYOUTS, fields)
    return whole_clips(clips.rename(columns={"session": "group"}), located), located.report


def _read(folder: Path, split: int, target: str) -> pd.DataFrame:
    """The lists of one split."""
    rows: list[dict[str, object]] = []
    for part in ("train", "test"):
        file = folder / f"{part}_split{split}.txt"
        if not file.exists():
            raise ManifestError(str(file), ["no such file; the lists come in pairs, train and test"])
        for i, line in enumerate(read_lines(file), 1):
            name, *numbers = line.split() or [""]
            clip = _CLIP.fullmatch(name)
            if clip and len(numbers) >= 3 and all(_NUMBER.fullmatch(n) for n in numbers[:3]):
                action, verb, noun = (int(n) - 1 for n in numbers[:3])
                parts = {"action": action, "verb": verb, "noun": noun}
                rows.append({"name": name, "split": part, "label": parts[target], **parts, **clip.groupdict()})
            elif line.strip():
                raise ManifestError(str(file), [f"line {i}: {line!r} is not '<clip> <action> <verb> <noun>'"])
    if not rows:
        raise ManifestError(str(folder), [f"the lists of split {split} are empty"])
    return pd.DataFrame(rows).astype(dict.fromkeys(("label", "verb", "noun"), "Int64")).drop(columns="action")
