"""EPIC-KITCHENS-55, official annotations: anticipation pairs for the actions and for unlabelled stretches.

The timestamps are the truth. ``split="paper"`` is the anticipation paper's: participants P01–P25 train (23,191
actions), P26–P31 validate (5,281); ``rulstm`` takes RULSTM's lists (23,493 and 4,979) with the official times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.epic import (
    Layout,
    Target,
    action_list,
    clips,
    durations,
    find_annotations,
    find_videos,
    frame_rate,
    read_official,
    with_classes,
)
from kdcache.datasets.gaps import unlabelled_pairs
from kdcache.datasets.listing import DatasetReport, Located
from kdcache.datasets.lists import demand
from kdcache.datasets.pairs import SETTINGS, TAU_S, WINDOW_S, Early, action_clips
from kdcache.datasets.rulstm import read_list
from kdcache.errors import ManifestError, OptionError

LAYOUT = """
annotations/EPIC_train_action_labels.csv     also directly below the root
annotations/EPIC_video_info.csv              durations; needed for unlabelled pairs
annotations/EPIC_train_invalid_labels.csv    optional; keeps unlabelled pairs off these spans
annotations/EPIC_test_s{1,2}_timestamps.csv  with test=true
videos/train/P01/P01_01.MP4                  or P01/videos/P01_01.MP4 (official downloader)
frames_rgb_flow/rgb/train/P01/P01_01.tar     or P01/rgb_frames/P01_01.tar, instead of videos
frames_rgb_flow/rgb/train/P01/P01_01/        the same, unpacked
"""

__all__ = ["LAYOUT", "SETTINGS", "manifest"]

ACTIONS = "EPIC_train_action_labels.csv"
LAST_TRAINING_PARTICIPANT = 25  # of the anticipation paper's split, recovered from its counts


def manifest(
    root: Path,
    *,
    tau: float = TAU_S,
    window: float = WINDOW_S,
    split: Literal["paper", "rulstm"] = "paper",
    target: Target = "verb",
    unlabelled: int = 26391,
    seed: int = 0,
    early: Early = "clamp",
    history: float | None = None,
    layout: Layout = "auto",
    annotations: Path | None = None,
    rulstm: Path | None = None,
    test: bool = False,
) -> tuple[pd.DataFrame, DatasetReport]:
    """Pairs ``ek55-<uid>@<tau>-observed`` / ``-action``, then ``ek55-<video>-gap<i>@<tau>-…`` without labels; or clips
    ``ek55-<uid>@<history>-past``.

    Args:
        root: the data root; see ``LAYOUT``.
        tau: anticipation time in seconds.
        window: length of each clip in seconds; extract at ``32 / window`` frames a second.
        split: which actions train and which validate.
        target: what ``label`` is; ``verb`` and ``noun`` have their own columns in any case.
        unlabelled: number of pairs from gaps of training videos (the paper's by default; 0 for none: half the disk);
            none with ``history``.
        seed: of the unlabelled draw.
        early: what becomes of actions that start before ``tau``.
        history: instead of pairs one clip an action, so many seconds that end where it starts.
        layout: where frames are taken from; ``auto`` takes what is there.
        annotations: folder of the official CSVs.
        rulstm: folder of RULSTM's ``training.csv`` and ``validation.csv``, for ``split="rulstm"``.
        test: add the test sets S1 and S2, without labels, for the challenge.
    """
    folder = find_annotations(root, annotations, [ACTIONS], "epic55")
    table = read_official(folder / ACTIONS, "epic55")
    if split == "paper":
        demand(folder / ACTIONS, table, "participant_id", "P[0-9]{1,9}", "a participant like P01")
    table["split"] = _paper_split(table) if split == "paper" else _rulstm_split(root, rulstm, table)
    unlisted = tuple("ek55-" + table.loc[table["split"] == "", "uid"])
    table = with_classes(table, target, action_list([table]))[table["split"] != ""]
    for name in ("s1", "s2") if test else ():
        extra = read_official(folder / f"EPIC_test_{name}_timestamps.csv", "epic55", labelled=False)
        table = pd.concat([table, extra.assign(split=f"test_{name}")], ignore_index=True)
    length = durations(folder / "EPIC_video_info.csv")
    located = find_videos(root, table["video_id"].unique(), layout, length)
    rows, dropped = action_clips(clips(table, located, length, "ek55"), tau, window, early, history)
    report = located.report.dropping({**dropped, "not in the RULSTM lists": unlisted})
    if unlabelled and history is None:
        taken = _annotated(folder, table)
        videos = _training_videos(table, located, length, folder)
        pairs = unlabelled_pairs(videos, taken, unlabelled, tau, window, seed)
        rows = pd.concat([rows, pairs], ignore_index=True)
    return rows, report


def _paper_split(table: pd.DataFrame) -> pd.Series[str]:
    number = table["participant_id"].str[1:].astype(int)
    return (number <= LAST_TRAINING_PARTICIPANT).map({True: "train", False: "val"})


def _rulstm_split(root: Path, given: Path | None, table: pd.DataFrame) -> pd.Series[str]:
    """RULSTM's ids are the official uids; its times are not used."""
    files = ("training.csv", "validation.csv")
    folder = find_annotations(root, given, files, "epic55 with split=rulstm")
    of = {
        int(uid): name
        for name, file in zip(("train", "val"), files, strict=True)
        for uid in read_list(folder / file, "rulstm-ek55")["id"]
    }
    unlisted = sorted(set(of) - set(table["uid"].astype(int)))
    if unlisted:
        raise ManifestError(str(folder), [f"id {uid} is in no official annotation" for uid in unlisted])
    return table["uid"].map(lambda uid: of.get(int(uid), ""))


def _annotated(folder: Path, table: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Name of a video → spans of its actions, those with invalid labels too."""
    spans = [table]
    if (folder / "EPIC_train_invalid_labels.csv").exists():
        spans.append(read_official(folder / "EPIC_train_invalid_labels.csv", "epic55"))
    every = pd.concat(spans)
    return {
        f"ek55-{video}": list(zip(part["start_s"], part["stop_s"], strict=True))
        for video, part in every.groupby("video_id")
    }


def _training_videos(table: pd.DataFrame, located: Located, length: dict[str, float], folder: Path) -> pd.DataFrame:
    """Videos whose actions all train, as rows to draw unlabelled pairs from."""
    videos = table.groupby("video_id", sort=True)["split"].agg(set)
    names = [str(v) for v, splits in videos.items() if splits == {"train"}]
    unknown = [v for v in names if v not in length]
    if unknown:
        raise OptionError(
            f"unlabelled pairs need the durations of all training videos and {folder}/EPIC_video_info.csv lacks "
            f"{', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}; put it there or set unlabelled=0."
        )
    rows = {
        "name": [f"ek55-{v}" for v in names],
        "source": [located.paths[v] for v in names],
        "duration_s": [length[v] for v in names],
        "split": "train",
        "subject": [v.split("_")[0] for v in names],
        "group": names,
    }
    frames = pd.DataFrame(rows)
    return frames if located.layout == "videos" else frames.assign(fps=[frame_rate(v) for v in names])
