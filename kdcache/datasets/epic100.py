"""EPIC-KITCHENS-100, official annotations: anticipation pairs for training, validation and test actions.

The timestamps are the truth. Class numbers are this set's own: the same word has another number in EPIC-KITCHENS-55.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdcache.datasets.epic import (
    Layout,
    Target,
    action_list,
    clips,
    durations,
    find_annotations,
    find_videos,
    read_official,
    with_classes,
)
from kdcache.datasets.listing import DatasetReport
from kdcache.datasets.pairs import SETTINGS, TAU_S, WINDOW_S, Early, action_clips
from kdcache.errors import OptionError

LAYOUT = """
annotations/EPIC_100_train.csv               also directly below the root
annotations/EPIC_100_validation.csv
annotations/EPIC_100_video_info.csv          optional; durations
annotations/EPIC_100_test_timestamps.csv     with test=true
P01/videos/P01_101.MP4                       official downloader, also below EPIC-KITCHENS/
videos/train/P01/P01_01.MP4                  videos of EPIC-KITCHENS-55 as released in 2018
P01/rgb_frames/P01_101.tar                   instead of videos; or unpacked, P01/rgb_frames/P01_101/
"""

__all__ = ["LAYOUT", "SETTINGS", "manifest"]

LABELLED = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
TEST = "EPIC_100_test_timestamps.csv"
WRONG_FRAMES = ("P01_109", "P27_103")  # the released pictures of these two are not theirs (official erratum)


def manifest(
    root: Path,
    *,
    tau: float = TAU_S,
    window: float = WINDOW_S,
    target: Target = "verb",
    early: Early = "clamp",
    history: float | None = None,
    layout: Layout = "auto",
    annotations: Path | None = None,
    test: bool = False,
) -> tuple[pd.DataFrame, DatasetReport]:
    """Pairs ``ek100-<narration_id>@<tau>-observed`` / ``-action``, or clips ``ek100-<narration_id>@<history>-past``.

    Args:
        root: the data root; see ``LAYOUT``.
        tau: anticipation time in seconds.
        window: length of each clip in seconds; extract at ``32 / window`` frames a second.
        target: what ``label`` is; ``verb`` and ``noun`` have their own columns in any case.
        early: what becomes of actions that start before ``tau``.
        history: instead of pairs one clip an action, so many seconds that end where it starts.
        layout: where frames are taken from; ``auto`` takes what is there.
        annotations: folder of the official CSVs.
        test: add the test set, without labels, for the challenge.
    """
    folder = find_annotations(root, annotations, list(LABELLED.values()), "epic100")
    present = {split: folder / file for split, file in LABELLED.items() if (folder / file).exists()}
    absent = [file for split, file in LABELLED.items() if split not in present]
    if target == "action" and absent:
        raise OptionError(
            f"{folder} lacks {absent[0]}, and actions are numbered over both files; put it there or take target=verb."
        )
    tables = [read_official(path, "epic100").assign(split=split) for split, path in present.items()]
    actions = action_list(tables)
    tables = [with_classes(table, target, actions) for table in tables]
    if test:
        tables.append(read_official(folder / TEST, "epic100", labelled=False).assign(split="test"))
    table = pd.concat(tables, ignore_index=True).rename(columns={"narration_id": "uid"})
    length = durations(folder / "EPIC_100_video_info.csv")
    located = find_videos(root, table["video_id"].unique(), layout, length)
    rows, dropped = action_clips(clips(table, located, length, "ek100"), tau, window, early, history)
    notes = [f"{file} is not in {folder}: its clips are not listed" for file in absent]
    if located.layout != "videos":
        notes += [f"the released pictures of {v} are wrong: replace them" for v in WRONG_FRAMES if v in located.paths]
    return rows, located.report.noting(*notes).dropping(dropped)
