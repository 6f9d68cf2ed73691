"""Kinetics-400 (and -600, -700): the official CSVs and clips as its downloaders store them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import decimals, filled_lines, read_frame
from kdcache.errors import ManifestError

LAYOUT = """
train.csv, val.csv (or validate.csv), test.csv     the official lists; also in annotations/
kinetics400_label_map.txt                          optional: class names in the network's output order
train/abseiling/0347ZoDXyP0_000095_000105.mp4      or without the class folder, or below videos_train/
val/abseiling/…
"""

LISTS = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}
LABEL_MAP = "kinetics400_label_map.txt"
_FILE = "{id}_{s}_{e}.mp4"
LAYOUTS = {
    "videos": [
        f"{folder}{name}{_FILE}"
        for folder in ("{split}/", "videos_{split}/", "videos/")
        for name in ("{c}/", "{c_}/", "")
    ]
}


def manifest(root: Path, *, annotations: Path | None = None) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a listed clip, named ``<youtube id>_<start>_<end>``; test clips may be unlabelled.

    Classes are numbered by the label map where there is one, else in the sorted order of their names, which is the
    same for the whole of Kinetics-400.

    Args:
        root: the data root; see ``LAYOUT``.
        annotations: folder of the lists.
    """
    every = [name for names in LISTS.values() for name in names]
    folder = annotation_folder(root, annotations, every, ("", "annotations", "annotations/kinetics"), "kinetics")
    tables = []
    for split, names in LISTS.items():
        file = next((folder / name for name in names if (folder / name).exists()), None)
        if file is not None:
            table = read_frame(file)
            lacking = [c for c in ("youtube_id", "time_start", "time_end") if c not in table]
            if lacking:
                raise ManifestError(str(file), [f"lacks the column {name}" for name in lacking])
            times = {c: decimals(file, table, c) for c in ("time_start", "time_end")}
            tables.append(table.assign(split=split, **times))
    table = pd.concat(tables, ignore_index=True)
    table["class"] = table["label"].fillna("").str.strip('"') if "label" in table else ""
    start, end = (table[c].astype(int).map("{:06d}".format) for c in ("time_start", "time_end"))
    clips = pd.DataFrame({"name": table["youtube_id"] + "_" + start + "_" + end, "split": table["split"]})
    clips["class"] = table["class"]
    clips["label"] = _labels(clips["class"], folder / LABEL_MAP)
    fields = {
        name: {"id": youtube, "s": s, "e": e, "split": split, "c": label, "c_": label.replace(" ", "_")}
        for name, youtube, s, e, split, label in zip(
            clips["name"], table["youtube_id"], start, end, clips["split"], clips["class"], strict=True
        )
    }
    located = locate(root, LAYOUTS, fields)
    return whole_clips(clips, located), located.report


def _labels(names: pd.Series[str], label_map: Path) -> pd.Series[int]:
    order = sorted(set(names) - {""})
    if label_map.exists():
        order = [line for _, line in filled_lines(label_map)]
    number = {name: i for i, name in enumerate(order)}
    unlisted = sorted(set(names) - {""} - set(number))
    if unlisted:
        raise ManifestError(str(label_map), [f"has no class {name!r}" for name in unlisted])
    return names.map(number).astype("Int64")
