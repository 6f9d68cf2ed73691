"""MSR Action3D: 20 joints a frame, 20 actions, 10 subjects; cross-subject, 557 sequences used."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import DatasetReport, Folders, locate, whole_clips
from kdcache.datasets.lists import read_lines
from kdcache.errors import ManifestError, OptionError

LAYOUT = """
msraction3d_files_used.txt                       the usual 557 of 567; also files_used_in_cvpr12_paper.txt beside the
msraction3d/a01_s01_e01_skeleton3D.txt           skeletons, which may lie below skeletons/ or directly below the root
"""

FOLDERS = ("msraction3d", "skeletons/msraction3d", "skeletons", "")
LISTS = ("msraction3d_files_used.txt", "files_used_in_cvpr12_paper.txt")
SUFFIX = "_skeleton3D.txt"
TRAINING_SUBJECTS = frozenset((1, 3, 5, 7, 9))


def manifest(
    root: Path, *, files: Literal["used", "all"] = "used", validation: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a sequence, ``aAA_sSS_eEE``; subjects 1, 3, 5, 7, 9 train.

    Args:
        root: the data root; see ``LAYOUT``.
        files: the usual 557, or all; the others are noisy (one holds only zeros).
        validation: subjects out of the training five that validate instead, such as 9 or 7,9.
    """
    held_out = _subjects(validation)
    folders = Folders(root)
    everything = {f: {n for n, _ in folders.entries(f).values() if n.endswith(SUFFIX)} for f in FOLDERS}
    folder = next((f for f in FOLDERS if everything[f]), None)
    if folder is None:
        raise OptionError(f"msraction3d: no *{SUFFIX} below {root}; expected:\n{LAYOUT}")
    on_disk = {name.removesuffix(SUFFIX) for name in everything[folder]}
    names = on_disk
    if files == "used":
        places = [root / place / name for place in ("", *FOLDERS) for name in LISTS]
        used = next((place for place in places if place.exists()), None)
        if used is None:
            raise OptionError(f"msraction3d: no {' or '.join(LISTS)} below {root}; put it there or take files=all.")
        names = {name for line in read_lines(used) for name in line.split()}
    clips = pd.DataFrame({"name": sorted(names)})
    parts = clips["name"].str.extract(r"^a(?P<action>[0-9]{2})_s(?P<subject>[0-9]{2})_e[0-9]{2}$")
    bad = clips.loc[parts["action"].isna(), "name"]
    if len(bad):
        raise ManifestError(str(root / folder), [f"{name!r} is not a name like a01_s01_e01" for name in bad])
    clips["label"] = (parts["action"].astype(int) - 1).astype("Int64")
    clips["subject"] = "s" + parts["subject"]
    number = parts["subject"].astype(int)
    clips["split"] = number.isin(TRAINING_SUBJECTS).map({True: "train", False: "test"})
    clips.loc[number.isin(held_out), "split"] = "validation"
    template = f"{folder}/{{n}}{SUFFIX}" if folder else f"{{n}}{SUFFIX}"
    unused = {name + SUFFIX.removesuffix(".txt") for name in on_disk - names} | {Path(name).stem for name in LISTS}
    located = locate(root, {"skeleton": [template]}, {n: {"n": n} for n in clips["name"]}, others=unused)
    return whole_clips(clips, located), located.report.dropping(
        {"they are not among the files used": sorted(on_disk - names)}
    )


def _subjects(names: tuple[str, ...]) -> set[int]:
    """Subjects to hold out, written 9, 09 or s09."""
    numbers = {int(name) if (name := n.removeprefix("s")).isdecimal() else 0 for n in names}
    if not numbers < TRAINING_SUBJECTS:
        raise OptionError(
            f"validation is {','.join(names)}: name some, not all, of the training subjects 1, 3, 5, 7, 9."
        )
    return numbers
