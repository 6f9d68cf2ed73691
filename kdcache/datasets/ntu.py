"""NTU RGB+D (60 classes): skeletons or RGB videos, cross-subject and cross-view.

Samples of the official list of missing skeletons are left out: 40,091 / 16,487 cross-subject, 37,646 / 18,932
cross-view.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import DatasetReport, Folders, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import read_lines
from kdcache.errors import ManifestError, OptionError

LAYOUT = """
samples_with_missing_skeletons.txt             the official list (also NTU_RGBD_samples_…), also in annotations/
skes_available_name.txt                        optional list of all samples; else those on disk
nturgb+d_skeletons/S001C001P001R001A001.skeleton
nturgb+d_rgb/S001C001P001R001A001_rgb.avi      with modality=rgb
"""

LAYOUTS = {
    "skeleton": ["nturgb+d_skeletons/{n}.skeleton", "{n}.skeleton"],
    "rgb": ["nturgb+d_rgb/{n}_rgb.avi", "{n}_rgb.avi"],
}
TRAINING_SUBJECTS = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
TEST_CAMERA = 1
MISSING = ("samples_with_missing_skeletons.txt", "NTU_RGBD_samples_with_missing_skeletons.txt")
LISTED = "skes_available_name.txt"
PATTERN = r"S(?P<setup>\d{3})C(?P<camera>\d{3})P(?P<subject>\d{3})R(?P<take>\d{3})A(?P<action>\d{3})"


def manifest(
    root: Path,
    *,
    protocol: Literal["subject", "view"] = "subject",
    modality: Literal["skeleton", "rgb"] = "skeleton",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a sample, named as the data set names it; both protocols stand in ``split_subject`` and ``split_view``.

    Args:
        root: the data root; see ``LAYOUT``.
        protocol: which of them ``split`` is: cross-subject, or cross-view (camera 1 tests).
        modality: which files are the sources.
        annotations: folder of the lists.
    """
    folder = annotation_folder(root, annotations, MISSING, ("", "annotations", "annotations/ntu"), "ntu")
    missing = _names(next(folder / name for name in MISSING if (folder / name).exists()))
    listed = folder / LISTED
    samples = sorted(_names(listed) if listed.exists() else _on_disk(root, modality))
    parts = pd.Series(samples, dtype="str").str.extract(f"^{PATTERN}$")
    bad = [name for name, setup in zip(samples, parts["setup"].isna(), strict=True) if setup]
    if bad:
        raise ManifestError(str(listed), [f"{name!r} is not a sample name like S001C001P001R001A001" for name in bad])
    clips = pd.DataFrame({"name": samples, "subject": "P" + parts["subject"], "camera": "C" + parts["camera"]})
    action = parts["action"].astype(int)
    clips["label"] = (action - 1).astype("Int64")
    training = {
        "subject": parts["subject"].astype(int).isin(TRAINING_SUBJECTS),
        "view": parts["camera"].astype(int) != TEST_CAMERA,
    }
    sides = {name: train.map({True: "train", False: "test"}) for name, train in training.items()}
    clips = clips.assign(split=sides[protocol], **{f"split_{name}": side for name, side in sides.items()})
    damaged, foreign = clips["name"].isin(missing), action > 60
    left_out = {
        "their skeletons are missing or damaged": clips.loc[damaged, "name"],
        "they belong to NTU RGB+D 120": clips.loc[foreign, "name"],
    }
    clips = clips[~damaged & ~foreign]
    known = {name + "_rgb" for name in missing} | missing
    located = locate(root, {modality: LAYOUTS[modality]}, {name: {"n": name} for name in clips["name"]}, others=known)
    return whole_clips(clips, located), located.report.dropping(left_out)


def _names(path: Path) -> set[str]:
    return {name for line in read_lines(path) for name in line.split()}


def _on_disk(root: Path, modality: str) -> set[str]:
    folders = Folders(root)
    for template in LAYOUTS[modality]:
        folder, _, name = template.rpartition("/")
        suffix = name.removeprefix("{n}")
        found = {n.removesuffix(suffix) for n, _ in folders.entries(folder).values() if n.endswith(suffix)}
        if found:
            return found
    raise OptionError(f"ntu: no {modality} files below {root}, and no {LISTED}; expected:\n{LAYOUT}")
